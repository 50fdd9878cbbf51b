"""SAELens folders: dictionaries that others can load, in the format of sae-lens 6."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from impact_lightning.files import atomic_write
from impact_lightning.sae.folded import Architecture, FoldedSAE, scale_codes
from impact_lightning.types import UserError

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"


class Kind(NamedTuple):
    """What a name of an architecture in `cfg.json` stands for."""

    architecture: Architecture
    is_transcoder: bool = False
    has_skip: bool = False


KINDS = {
    "standard": Kind("standard"),
    "topk": Kind("topk"),
    "jumprelu": Kind("jumprelu"),
    "gated": Kind("gated"),
    "transcoder": Kind("standard", is_transcoder=True),
    "skip_transcoder": Kind("standard", is_transcoder=True, has_skip=True),
    "jumprelu_transcoder": Kind("jumprelu", is_transcoder=True),
    "jumprelu_skip_transcoder": Kind("jumprelu", is_transcoder=True, has_skip=True),
}
FOREIGN = {"normalize_activations": "none", "reshape_activations": "none"}  # all that a folded dictionary can have


def write_saelens(folder: Path, sae: FoldedSAE, *, density: Tensor | None = None) -> None:
    """Write a dictionary as a SAELens folder; `cfg.json` comes last, so that a folder with one is complete.

    Args:
        folder: Where; made if it is missing.
        sae: The dictionary, for raw activations.
        density: Share of tokens on which each latent fires, `(F,)`, for `sparsity.safetensors`.
    """
    config = _to_json(to_config(sae))
    _write(folder / WEIGHTS, save(to_tensors(sae)))
    if density is not None:
        log_density = (density.double() + 1e-10).log10()  # as SAELens does, so that dead latents have a value
        _write(folder / SPARSITY, save({"sparsity": log_density.float().cpu()}))
    _write(folder / CONFIG, config)


def read_saelens(folder: Path) -> FoldedSAE:
    """Return the dictionary of a SAELens folder; a damaged one is refused with the file and key that is wrong."""
    config = _read_config(folder / CONFIG)
    tensors = _read_tensors(folder / WEIGHTS)
    try:
        return from_parts(config, tensors)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def read_log_density(folder: Path) -> Tensor | None:
    """Return log10 of each latent's density `(F,)`, None in a folder that does not state it."""
    if not (folder / SPARSITY).exists():
        return None
    tensors = _read_tensors(folder / SPARSITY)
    if "sparsity" not in tensors:
        raise UserError(f"{folder / SPARSITY}: has no tensor 'sparsity'")
    return tensors["sparsity"]


def to_config(sae: FoldedSAE) -> dict[str, Any]:
    """Return the content of `cfg.json`."""
    kind = Kind(sae.architecture, sae.is_transcoder, sae.w_skip is not None)
    names = [name for name, other in KINDS.items() if other == kind]
    if not names:
        raise UserError(f"SAELens knows no transcoder whose architecture is {sae.architecture}")
    n_latents, d_in = sae.w_enc.shape
    return {
        "architecture": names[0],
        "d_in": d_in,
        "d_sae": n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        **FOREIGN,
        **({"d_out": len(sae.b_dec)} if sae.is_transcoder else {}),
        **({"k": sae.k, "rescale_acts_by_decoder_norm": False} if sae.k is not None else {}),
        "metadata": sae.metadata,
    }


def to_tensors(sae: FoldedSAE) -> dict[str, Tensor]:
    """Return the content of `sae_weights.safetensors`; theirs is the transpose of our encoder."""
    tensors = {
        "W_enc": sae.w_enc.T,  # (F, D) -> (D, F)
        "W_dec": sae.w_dec,
        "b_gate" if sae.architecture == "gated" else "b_enc": sae.b_enc,
        "b_dec": sae.b_dec,
        "threshold": sae.threshold,
        "r_mag": sae.r_mag,
        "b_mag": sae.b_mag,
        "W_skip": sae.w_skip,
    }
    return {
        name: tensor.detach().float().cpu().contiguous().clone()  # tensors that share memory cannot be saved
        for name, tensor in tensors.items()
        if tensor is not None
    }


def from_parts(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FoldedSAE:
    """Return the dictionary that a configuration and its tensors describe."""
    kind = KINDS.get(str(config.get("architecture")))
    if kind is None:
        raise UserError(
            f"{CONFIG}: architecture {config.get('architecture')!r} is none of those that are read: {', '.join(KINDS)}"
        )
    for key, value in FOREIGN.items():
        if config.get(key, value) not in (value, None):
            raise UserError(
                f"{CONFIG}: {key} is {config[key]!r}; fold it into the weights first, only {value!r} is read"
            )
    metadata = config.get("metadata", {})
    if not isinstance(metadata, dict):
        raise UserError(f"{CONFIG}: metadata is {metadata!r} and should be a table")
    parts = {name: tensor.float() for name, tensor in tensors.items()}
    is_gated, is_jump = kind.architecture == "gated", kind.architecture == "jumprelu"
    sae = FoldedSAE(
        kind.architecture,
        w_enc=_part(parts, "W_enc").T.contiguous(),  # (D, F) -> (F, D)
        w_dec=_part(parts, "W_dec"),
        b_enc=_part(parts, "b_gate" if is_gated else "b_enc"),
        b_dec=_part(parts, "b_dec"),
        threshold=_part(parts, "threshold") if is_jump else None,
        k=_whole(config, "k") if kind.architecture == "topk" else None,
        r_mag=_part(parts, "r_mag") if is_gated else None,
        b_mag=_part(parts, "b_mag") if is_gated else None,
        w_skip=_part(parts, "W_skip") if kind.has_skip else None,
        is_transcoder=kind.is_transcoder,
        centred=not kind.is_transcoder and bool(config.get("apply_b_dec_to_input", True)),
        metadata=metadata,
    )
    if parts:
        raise UserError(f"{WEIGHTS}: {config['architecture']} has no tensor {sorted(parts)[0]!r}")
    for key, size in {"d_in": sae.w_enc.shape[1], "d_sae": len(sae.w_enc)}.items():
        if _whole(config, key) != size:
            raise UserError(f"{CONFIG}: {key} is {config[key]!r}, but the weights have {size}")
    if config.get("rescale_acts_by_decoder_norm", False):
        return scale_codes(sae, torch.linalg.vector_norm(sae.w_dec, dim=1))
    return sae


def _to_json(config: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(config, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"metadata: cannot be written as JSON ({error})") from None


def _part(parts: dict[str, Tensor], name: str) -> Tensor:
    if name not in parts:
        raise UserError(f"{WEIGHTS}: has no tensor {name!r}")
    return parts.pop(name)


def _whole(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{CONFIG}: {key} is {value!r} and should be a whole number")
    return value


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a SAELens folder has one") from None
    except ValueError as error:  # neither JSON nor text
        raise UserError(f"{path} is not complete JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no table of settings")
    return cast(dict[str, Any], config)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a SAELens folder has one") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error})") from None


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)
