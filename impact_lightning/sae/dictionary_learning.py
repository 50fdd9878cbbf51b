"""Folders of the library `dictionary_learning`: `config.json` and `ae.pt`, read without unpickling code."""

import json
import pickle
from pathlib import Path

import torch
from torch import Tensor

from impact_lightning.sae.folded import Architecture, FoldedSAE
from impact_lightning.types import UserError

CONFIG, WEIGHTS = "config.json", "ae.pt"
CLASSES: dict[str, Architecture] = {
    "AutoEncoder": "standard",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}


def read_dictionary_learning(folder: Path) -> FoldedSAE:
    """Return the dictionary of a folder; a damaged one is refused with the file and key that is wrong."""
    try:
        name = json.loads((folder / CONFIG).read_bytes())["trainer"]["dict_class"]
    except FileNotFoundError:
        raise UserError(f"{folder / CONFIG}: no such file") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: has no trainer.dict_class ({error})") from None
    if not isinstance(name, str) or name not in CLASSES:
        raise UserError(f"{folder / CONFIG}: dict_class {name!r} is none of those that are read: {', '.join(CLASSES)}")
    try:
        return from_state(name, _read(folder / WEIGHTS))
    except UserError as error:
        raise UserError(f"{folder / WEIGHTS}: {error}") from None


def from_state(name: str, state: dict[str, Tensor]) -> FoldedSAE:
    """Return the dictionary that the state of a module of class `name` describes."""

    def part(key: str) -> Tensor:
        if not isinstance(state.get(key), Tensor):
            raise UserError(f"has no tensor {key!r}")
        return state[key]

    if name == "MatryoshkaBatchTopKSAE":  # the one that does not keep its weights as `nn.Linear` does
        w_enc, b_enc, w_dec = part("W_enc").T, part("b_enc"), part("W_dec")
    else:
        w_enc, b_enc, w_dec = part("encoder.weight"), part("encoder.bias"), part("decoder.weight").T
    threshold = part("threshold").float() if CLASSES[name] == "jumprelu" else None
    if threshold is not None and threshold < 0:  # −1 in a dictionary whose training ended before there was one
        raise UserError(f"threshold is {float(threshold)}, unset: codes of one token would depend on its batch")
    return FoldedSAE(
        CLASSES[name],
        w_enc=w_enc.float().contiguous(),
        b_enc=b_enc.float(),
        w_dec=w_dec.float().contiguous(),
        b_dec=part("bias" if name == "AutoEncoder" else "b_dec").float(),
        threshold=None if threshold is None else threshold.repeat(len(b_enc)),
        k=int(part("k")) if CLASSES[name] == "topk" else None,
        metadata={"training_architecture": name},
    )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError("no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"is damaged, or more than weights ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict):
        raise UserError("holds no table of tensors")
    return state
