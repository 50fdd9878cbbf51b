"""The vision transformer of a run: which timm model, with which weights."""

import hashlib
import inspect
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from impact_lightning.files import refuse_flipped_bits
from impact_lightning.types import UserError

from .abs_topk import STATE, ActivationTopK
from .sites import check_supported, unwrap

HEADS = ("head.", "head_dist.")  # a distilled model has two
ModelArgs = dict[str, int | float | bool | str | None]


@dataclass(frozen=True)
class Backbone:
    """A vision transformer that timm builds, and where its weights come from.

    Args:
        name: Name of a timm model of the VisionTransformer family, such as `deit3_base_patch16_224`; with `pretrained`
            it may carry a tag, such as `vit_base_patch16_224.augreg_in1k`.
        pretrained: Download the weights that timm has for this name.
        weights: Local file to read the weights from: .safetensors, or .pth, .pt, .bin without code in it, or a .ckpt
            that `fit` of a classifier wrote (of two sets of weights, the average). Every key has to fit.
        new_head: Leave the head of `weights` out: it was trained for other classes, and begins anew.
        model_args: Changes to the architecture, passed on to timm: `img_size`, `patch_size`, `embed_dim`, `depth`, ...
        num_classes: Number of classes of the head; by default what the name says.
        activation_topk: Activation sparsity at the eight sites of every block; none by default.
        head: File of a fit with `train_only: [head]`, whose head takes the place of the one in `weights`: a probe for
            other classes, such as another factor of a scene.
    """

    name: str
    pretrained: bool = False
    weights: Path | None = None
    new_head: bool = False
    model_args: ModelArgs = field(default_factory=dict)
    num_classes: int | None = None
    activation_topk: ActivationTopK | None = None
    head: Path | None = None

    def build(self) -> VisionTransformer:
        """Return the model with its weights, in training mode as timm makes it."""
        self._check()
        args: dict[str, Any] = {**self.model_args}
        if self.num_classes is not None:
            args["num_classes"] = self.num_classes
        try:
            model = timm.create_model(self.name, pretrained=self.pretrained, **args)
        except OSError as error:
            raise UserError(f"the pretrained weights of {self.name} cannot be fetched: {error}") from error
        except (TypeError, ValueError, RuntimeError, AssertionError, ArithmeticError) as error:
            raise UserError(f"timm cannot build {self.name} with {args or 'no model_args'}: {error}") from error
        model = check_supported(model)
        if self.activation_topk is not None:
            self.activation_topk.attach(model)
        if self.weights is not None:
            load_weights(model, self.weights, new_head=self.new_head or self.head is not None)
        if self.head is not None:
            load_head(model, self.head)
        return model

    def _check(self) -> None:
        if not timm.is_model(self.name):
            raise UserError(f"timm has no model {self.name!r}{_closest(self.name, timm.list_models())}")
        if self.pretrained and self.weights is not None:
            raise UserError(
                f"pretrained and weights are both set: {self.name} can have its weights from one place only"
            )
        if self.head is not None and self.weights is None and not self.pretrained:
            raise UserError(f"{self.head} is the head of trained weights: set weights or pretrained beside head")
        # other arguments of create_model would load files or change the model class
        known = inspect.signature(VisionTransformer).parameters.keys() - {"num_classes"}
        for key in self.model_args.keys() - known:
            hint = ": num_classes stands beside model_args" if key == "num_classes" else _closest(key, known)
            raise UserError(f"model_args has no key {key!r}{hint}")


def load_weights(model: nn.Module, path: Path, *, new_head: bool = False) -> None:
    """Load a local file into `model`; every key and shape has to fit, but for a head that begins anew."""
    weights = read_weights(path)
    expected = model.state_dict()
    if STATE in weights and STATE not in expected:
        raise UserError(
            f"{path} was trained with activation sparsity: set backbone.activation_topk as its training did"
        )
    if STATE in expected:
        weights.setdefault(STATE, expected[STATE])  # dense weights can begin a sparse training
    if new_head:
        weights = {name: value for name, value in weights.items() if not name.startswith(HEADS)}
        weights |= {name: value for name, value in expected.items() if name.startswith(HEADS)}
    _load(model, weights, path, hint="; new_head: true leaves its head out")


def load_head(model: nn.Module, path: Path) -> None:
    """Load the head alone; it has to fit, and what else is in the file is left out."""
    head = {name: value for name, value in read_weights(path).items() if name.startswith(HEADS)}
    if not head:
        raise UserError(f"{path} has no head: no key begins with {' or '.join(HEADS)}")
    rest = {name: value for name, value in model.state_dict().items() if not name.startswith(HEADS)}
    _load(model, rest | head, path, hint="; it was trained for other classes")


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path, *, hint: str) -> None:
    expected = model.state_dict()
    misfits = {
        "missing": expected.keys() - weights.keys(),
        "unexpected": weights.keys() - expected.keys(),
        "of another shape": {
            f"{key} {tuple(weights[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected.keys() & weights.keys()
            if weights[key].shape != expected[key].shape
        },
    }
    if any(misfits.values()):
        found = "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in misfits.items() if keys)
        raise UserError(f"{path} does not fit the model ({found}){hint if 'head.weight' in found else ''}")
    model.load_state_dict(weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pth, .pt or .bin file by name, without running code from it."""
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin", ".ckpt"):
        raise UserError(f"weights file {path} is none of .safetensors, .pth, .pt, .bin and .ckpt")
    try:
        refuse_flipped_bits(path)
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"weights file {path} is damaged, or holds more than tensors: {error}") from error
    for key in ("model", "state_dict"):  # training scripts store the weights beside the optimiser
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(
            f"weights file {path} holds no mapping of names to tensors, also not under `model` or `state_dict`"
        )
    return _as_timm_names(content)


def _as_timm_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the vision transformer alone, under the names that timm gives them."""
    for prefix in ("ema.module.", "model."):  # of `fit`: the average is what was measured
        if inner := {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}:
            weights = inner
            break
    layer_scale = {".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma"}  # as DeiT-III was published
    return {
        next((name.removesuffix(old) + new for old, new in layer_scale.items() if name.endswith(old)), name): value
        for name, value in weights.items()
    }


def fingerprint(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Return 16 hex digits that tell weights apart: the same on any device, different after any change.

    SHA-256 over names, dtypes, shapes and bytes, sorted by name; of a model over its state dict, compiled or not.
    """
    tensors = unwrap(weights).state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # also bfloat16
    return digest.hexdigest()[:16]


def _closest(name: str, known: Iterable[str]) -> str:
    matches = get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _first(keys: Iterable[str], n: int = 3) -> str:
    first = sorted(keys)
    return ", ".join(first[:n]) + (", ..." if len(first) > n else "")
