"""Activation sparsity: of every token only the k activations of largest magnitude flow on."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from impact_lightning.types import UserError

from .sites import Site, hook_point

SITES = ("attn_in", "q", "k", "v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")  # all that is read and written
STATE = "activation_topk._extra_state"  # its name in a state dict


@dataclass(frozen=True)
class ActivationTopK:
    """AbsTopK at the eight sites of every block, in training and in evaluation.

    Args:
        share: Share of the channels of a site that a token keeps.
        spare_cls: Leave the class token dense.
    """

    share: float = 0.25
    spare_cls: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 < self.share <= 1:
            raise UserError(f"backbone.activation_topk.share {self.share} must be above 0 and at most 1")

    def attach(self, model: VisionTransformer) -> None:
        """Let `model` keep only the largest activations from now on; copies and state dicts of it say so too."""
        if self.spare_cls and model.cls_token is None:
            raise UserError("backbone.activation_topk.spare_cls: the model has no class token")
        model.activation_topk = keeper = _Keeper(self)
        for i in range(len(model.blocks)):
            for name in SITES:
                module, side = hook_point(model, Site(i, name))
                if name in ("k", "v"):
                    continue  # one hook for the thirds of one output
                if side == "input":
                    module.register_forward_pre_hook(keeper.on_input)
                else:
                    module.register_forward_hook(keeper.on_thirds if name == "q" else keeper.on_output)


def abs_topk(x: Tensor, k: int) -> Tensor:
    """Return `x` with all but the k largest magnitudes of its last dimension set to zero.

    The gradient flows through what is kept. Of equal magnitudes any are kept, k in all.
    """
    if k == x.shape[-1]:
        return x
    kept = x.detach().abs().topk(k, dim=-1, sorted=False).indices
    dropped = torch.ones_like(x, dtype=torch.bool).scatter_(-1, kept, value=False)
    return x.masked_fill(dropped, 0.0)


class _Keeper(nn.Module):
    """The hooks. A module, for the state dict to tell a model with them from one without."""

    def __init__(self, config: ActivationTopK) -> None:
        super().__init__()
        self.config = config

    def on_input(self, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (self._sparse(args[0]),)

    def on_output(self, _: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return self._sparse(output)

    def on_thirds(self, _: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return self._sparse(output.unflatten(-1, (3, -1))).flatten(-2)  # (B, T, 3*W) -> (B, T, 3, W) -> (B, T, 3*W)

    def _sparse(self, x: Tensor) -> Tensor:
        """Return x `(B, T, ...)` sparse in its last dimension."""
        k = max(1, math.floor(Fraction(repr(float(self.config.share))) * x.shape[-1]))
        if not self.config.spare_cls:
            return abs_topk(x, k)
        return torch.cat([x[:, :1], abs_topk(x[:, 1:], k)], dim=1)

    def get_extra_state(self) -> Tensor:
        """Return the configuration as numbers: safetensors hold nothing else."""
        return torch.tensor([self.config.share, float(self.config.spare_cls)], dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        """Refuse weights that were trained with another activation sparsity."""
        if not torch.equal(state.cpu(), self.get_extra_state()):
            share, spare_cls = state.tolist()
            raise UserError(
                f"the weights were trained with activation_topk {{share: {share}, spare_cls: {bool(spare_cls)}}}, "
                f"the model has {{share: {self.config.share}, spare_cls: {self.config.spare_cls}}}"
            )
