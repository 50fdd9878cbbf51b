"""The recipe of a pruning: which method, over which scope, in which shares; refused before any work if it cannot be."""

from dataclasses import dataclass
from typing import Literal

from impact_lightning.sparsity.masks import NofM, Scope
from impact_lightning.sparsity.ratios import Ratios, mapped_ratios
from impact_lightning.sparsity.targets import Target
from impact_lightning.types import UserError

Method = Literal["random", "magnitude", "wanda", "sparsegpt"]


@dataclass(frozen=True)
class Recipe:
    """How weights are chosen; the arguments are those of `prune`."""

    method: Method
    scope: Scope
    ratios: Ratios = "uniform"
    sequential: bool = False
    split_qkv: bool = False
    fold_layer_scale: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse combinations that mean nothing."""
        if self.method == "sparsegpt" and self.scope in ("row", "global"):
            raise UserError(f"scope {self.scope}: sparsegpt chooses within a tensor; set scope to tensor, or N:M")
        if self.ratios != "uniform" and (self.scope == "global" or isinstance(self.scope, NofM)):
            raise UserError(f"ratios: scope {self.scope} decides by itself how much of each layer is pruned")
        if self.split_qkv and self.scope != "tensor":
            raise UserError(f"split_qkv: q, k and v are compared with each other in scope tensor, not in {self.scope}")
        if self.sequential and self.scope == "global":
            raise UserError("sequential: a block is pruned before the next is scored; scope global compares them all")
        if self.sequential and not self.is_calibrated:
            raise UserError(f"sequential: {self.method} reads no activations that could be computed again")

    @property
    def is_calibrated(self) -> bool:
        """Whether the method looks at activations."""
        return self.method in ("wanda", "sparsegpt")

    @property
    def needs_images(self) -> bool:
        """Whether anything looks at activations."""
        return self.is_calibrated or self.ratios == "outliers"

    def sparsities(self, asked: float | list[float] | None) -> list[float]:
        """Return the sparsities that are made, each once."""
        if isinstance(self.scope, NofM):
            if asked not in (None, self.scope.sparsity, [self.scope.sparsity]):
                raise UserError(
                    f"sparsity {asked}: scope {self.scope} makes {self.scope.sparsity}; leave sparsity out, or null it"
                )
            return [self.scope.sparsity]
        if asked is None:
            raise UserError("sparsity: say which share of the weights is to become zero, or several in a list")
        several = [float(one) for one in asked] if isinstance(asked, list) else [float(asked)]
        if not several or len(set(several)) < len(several):
            raise UserError(f"sparsity must name at least one share, each once, got {several}")
        for one in several:
            if not 0 <= one < 1:
                why = ": at 1 no weight is left" if one == 1 else ""
                raise UserError(f"sparsity must lie in [0, 1), got {one}{why}")
        return several

    def check(self, targets: list[Target], sparsities: list[float]) -> None:
        """Refuse weights that the recipe does not fit."""
        for target in targets:
            n_in = target.weight.shape[1]
            if isinstance(self.scope, NofM) and n_in % self.scope.of:
                raise UserError(f"scope {self.scope}: {target.name} has {n_in} inputs, no multiple of {self.scope.of}")
            if not target.weight.isfinite().all():
                raise UserError(f"{target.name} holds nan or infinity; look at the weights")
        if isinstance(self.ratios, dict):
            for sparsity in sparsities:
                mapped_ratios(targets, sparsity, self.ratios)
