"""Masks that stay: whatever a fit does to a pruned model, what was zero remains zero."""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from impact_lightning.backbones import Backbone
from impact_lightning.backbones.classifier import LitClassifier
from impact_lightning.backbones.sites import unwrap
from impact_lightning.files import read_torch
from impact_lightning.ranks import all_union
from impact_lightning.sparsity.pruned_file import (
    is_pruned,
    masks_path,
    pack,
    read_masks,
    read_protocol,
    unpack,
    write_pruned,
)
from impact_lightning.types import UserError


class KeepMasks(Callback):
    """Keep every weight at zero that `prune` has set to zero, in the model and in the average of its weights.

    The masks are found by themselves: beside `backbone.weights` where `prune` wrote it, in it where it is a checkpoint
    of a masked fit, and in the checkpoint that a fit continues from. Without masks the callback does nothing. They
    hold before each clipping of gradients, after each step of the optimiser, in each checkpoint, and at the end, where
    the weights are counted and written as `pruned.safetensors` of the run, with the masks beside them.
    """

    def __init__(self) -> None:
        self._bits: dict[str, Tensor] = {}  # packed, as files have them
        self._protocol: dict[str, Any] = {}  # how they were made
        self._run: dict[str, Any] = {}  # what is done to them now
        self._removed: list[tuple[str, nn.Parameter, Tensor]] = []  # a tensor of a model, and where it is zero
        self._hooks: list[RemovableHandle] = []
        self._said = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the masks of the weights that a fit begins with; refuse those that do not fit them."""
        if stage != "fit" or not isinstance(pl_module, LitClassifier):
            return
        masks, self._protocol = found_masks(pl_module.backbone_config)
        self._bits = {name: pack(mask) for name, mask in masks.items()}
        for name, weight, removed in _places(pl_module, self._bits):
            if weight[removed].any():
                raise UserError(f"the mask of {name} does not fit backbone.weights: they are not zero where it is")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mask what a checkpoint has brought, and from now on every step."""
        if not self._bits:
            return
        assert isinstance(pl_module, LitClassifier)
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise UserError(f"masks need whole weights, which {type(trainer.strategy).__name__} cuts up; use ddp")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._run = {
            "from": self._protocol["weights"],
            "seed": pl_module.seed,
            "average": pl_module.ema is not None,
            "data": data.fingerprint("train"),
        }
        self._removed = _places(pl_module, self._bits)
        if dense := sorted({name for name, weight, removed in self._removed if weight[removed].any()}):
            warnings.warn(
                f"the checkpoint is dense where {len(dense)} masks are zero ({dense[0]}, ...): it is masked again",
                stacklevel=1,
            )
        self._mask_weights()
        for optimizer in trainer.optimizers:  # before the average of the weights follows, unlike Lightning's own hooks
            self._hooks.append(optimizer.register_step_post_hook(lambda *_: self._mask_weights()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Leave what is removed out of moments and of the norm that gradients are clipped by."""
        for _, weight, removed in self._removed:
            if weight.grad is not None:
                weight.grad.masked_fill_(removed, 0)  # a product would leave nan and infinity

    @torch.no_grad()
    def _mask_weights(self) -> None:
        for _, weight, removed in self._removed:
            weight.masked_fill_(removed, 0)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mask what other callbacks have written since the step; the checkpoint shares the memory of the weights."""
        self._mask_weights()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count on every rank, and write the model that is evaluated for plain timm."""
        while self._hooks:
            self._hooks.pop().remove()
        if not self._bits:
            return
        assert isinstance(pl_module, LitClassifier)
        self._mask_weights()
        kept, total = self._count()
        if len(all_union({kept})) > 1:
            raise UserError("the ranks have different counts of nonzero weights; look at the other callbacks")
        self._said = f"masks kept: {kept:,} of {total:,} weights nonzero ({1 - kept / total:.2%} zeros)"
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set at run time
            self._write(Path(trainer.default_root_dir) / "pruned.safetensors", trainer, pl_module)
        self._removed = []

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, when the progress bar is gone."""
        if self._said and trainer.is_global_zero:
            print(f"\n{self._said}")

    def state_dict(self) -> dict[str, Any]:
        """Return the masks and how they were made, so that a checkpoint needs no other file."""
        return {"masks": self._bits, "protocol": self._protocol, "run": self._run} if self._bits else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the masks of the checkpoint; others than those of `backbone.weights` are refused."""
        bits = {name: part.cpu() for name, part in state_dict["masks"].items()}
        same = self._bits.keys() == bits.keys() and all(
            torch.equal(bits[name], own) for name, own in self._bits.items()
        )
        if self._bits and not same:
            raise UserError("the checkpoint was fitted under other masks than those of backbone.weights")
        self._bits, self._protocol = bits, state_dict["protocol"]

    def _count(self) -> tuple[int, int]:
        """Return how many weights are nonzero in the model, and how many there are in the masked tensors."""
        names = {name: weight for name, weight, _ in reversed(self._removed)}  # the model comes before its average
        return sum(int(w.count_nonzero()) for w in names.values()), sum(w.numel() for w in names.values())

    def _write(self, path: Path, trainer: Trainer, module: LitClassifier) -> None:
        protocol = _grown(self._protocol, self._run, trainer.global_step)
        weights = unwrap(module.evaluated).state_dict()
        masks = {name: unpack(bits, weights[name].shape) for name, bits in self._bits.items()}
        write_pruned(path, weights, masks, protocol)
        self._said += f"\n  for timm    {path}  {masks_path(path)}"


def found_masks(backbone: Backbone) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the masks that belong to the weights of a backbone, and how they were made; nothing for dense ones."""
    path = backbone.weights
    if path is None:
        return {}, {}
    if path.suffix == ".ckpt":
        content = read_torch(path)
        state = content.get("callbacks", {}).get(KeepMasks.__qualname__)
        if state is None:
            return {}, {}
        shapes = {name.removeprefix("model."): value.shape for name, value in content["state_dict"].items()}
        masks = {name: unpack(bits, shapes[name]) for name, bits in state["masks"].items()}
        return masks, _grown(state["protocol"], state["run"], content["global_step"])
    return (read_masks(path), read_protocol(path)) if is_pruned(path) else ({}, {})


def _grown(protocol: dict[str, Any], run: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return how weights were made when a fine-tuning is added to what was done to them."""
    return {**protocol, "fine_tuned": [*protocol.get("fine_tuned", []), {**run, "steps": steps}]}


def _places(module: LitClassifier, bits: dict[str, Tensor]) -> list[tuple[str, nn.Parameter, Tensor]]:
    """Return every masked tensor of the model and of its average, with the places that are zero, on its device."""
    models = [module.model, *([] if module.ema is None else [module.ema.module])]
    places = []
    for name, packed in bits.items():
        for model in models:
            weight = dict(unwrap(model).named_parameters()).get(name)
            if weight is None or len(packed) != -(-weight.numel() // 8):
                shape = "no such tensor" if weight is None else f"shape {tuple(weight.shape)}"
                raise UserError(f"the mask of {name} does not fit model {module.backbone_config.name}: it has {shape}")
            places.append((name, weight, ~unpack(packed, weight.shape).to(weight.device)))
    return places
