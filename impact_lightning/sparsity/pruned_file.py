"""Pruned weights on disk: a safetensors file for plain timm that says how it was made, and beside it the masks.

`model.safetensors` holds the state dict and, in its metadata under `protocol`, JSON. `model.masks.safetensors` holds
the mask of every pruned tensor, eight weights in a byte (numpy's `packbits`, rows first), under the tensor's name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from impact_lightning.backbones import fingerprint
from impact_lightning.files import atomic_write
from impact_lightning.types import UserError

SCHEMA = 1


def masks_path(path: Path) -> Path:
    """Return the file that holds the masks of a file of weights."""
    return path.with_suffix(".masks.safetensors")


def write_pruned(
    path: Path, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], protocol: Mapping[str, Any]
) -> None:
    """Write a state dict and its masks; the weights appear last, and then both are complete.

    Args:
        path: File of the weights.
        weights: The whole state dict.
        masks: Which weights are kept, by name of the pruned tensors.
        protocol: How they were made; the fingerprints of both files are added to it.
    """
    packed = {name: pack(mask) for name, mask in masks.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    known = {
        "schema": SCHEMA,
        **protocol,
        "weights": fingerprint(tensors),
        "masks": fingerprint(packed),
    }
    metadata = {"format": "pt", "protocol": json.dumps(known, sort_keys=True, allow_nan=False)}
    for file_path, content in ((masks_path(path), packed), (path, tensors)):
        try:
            with atomic_write(file_path) as file:
                file.write(save(content, metadata))
        except OSError as error:
            raise UserError(f"{file_path} cannot be written: {error.strerror or error}") from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged, or no safetensors file: {error}") from error


def is_pruned(path: Path) -> bool:
    """Return whether a file of weights is one that masks belong to."""
    return path.suffix == ".safetensors" and "protocol" in _metadata(path)


def read_protocol(path: Path) -> dict[str, Any]:
    """Return how a pruned file was made."""
    metadata = _metadata(path)
    if "protocol" not in metadata:
        raise UserError(f"{path} was not written by `prune`: its metadata has no protocol")
    try:
        protocol: dict[str, Any] = json.loads(metadata["protocol"])
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: its protocol is no JSON ({error}); prune it again") from None
    if not isinstance(protocol, dict) or not {"schema", "weights", "masks"} <= protocol.keys():
        raise UserError(f"{path}: its protocol lacks schema, weights or masks; prune it again")
    if protocol.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {protocol.get('schema')}, and this version reads {SCHEMA}")
    return protocol


def read_masks(path: Path) -> dict[str, Tensor]:
    """Return which weights of a pruned file are kept, by name; masks that do not belong to the weights are refused.

    Args:
        path: File of the weights; the masks lie beside it.
    """
    protocol = read_protocol(path)
    beside = masks_path(path)
    if not beside.exists():
        raise UserError(
            f"{path} is a pruned file, and its masks are missing beside it: copy {beside.name} there too; to train "
            "without masks, save the state dict to a file of its own"
        )
    if read_protocol(beside)["masks"] != protocol["masks"]:
        raise UserError(f"{beside} holds the masks of other weights than {path}; copy the two files together")
    weights, packed = load_file(path), load_file(beside)
    if fingerprint(packed) != protocol["masks"]:
        raise UserError(f"{beside} is damaged: its masks do not have their fingerprint")
    masks = {name: unpack(bits, weights[name].shape) for name, bits in packed.items()}
    if fingerprint(weights) != protocol["weights"]:
        raise UserError(f"{path}: its weights are not those that its protocol is of; prune it again")
    for name, mask in masks.items():
        if weights[name][~mask].any():
            raise UserError(f"{path}: {name} has weights where its mask has none; prune it again")
    return masks


def pack(mask: Tensor) -> Tensor:
    """Return a mask as bytes `(ceil(numel / 8),)`."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpack(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return the mask of a shape out of its bytes."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel()).astype(bool)).view(shape)
