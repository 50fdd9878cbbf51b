"""One weight matrix of a weight-sparse training: its largest magnitudes stay, the rest are zeroed."""

import math
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

from impact_lightning.sparsity.compare import at_least, zero_where_not
from impact_lightning.sparsity.masks import keep_highest
from impact_lightning.sparsity.targets import Target
from impact_lightning.sparsity.warm_threshold import WarmThreshold
from impact_lightning.types import UserError

UNITS = {
    "attn.qkv": 0,
    "mlp.fc1": 0,
    "attn.proj": 1,
    "mlp.fc2": 1,
}  # a unit is a row that writes it, a column that reads


class SparseTensor:
    """Keeps `floor(multiple * density * numel)` weights; of equal magnitudes the smaller index is zeroed first.

    Args:
        target: The weights.
        multiple: The density of this tensor in units of that of the model; it ends at 1.
        min_alive: Least number of weights of each neuron or attention channel. The largest so many of each are kept
            before all others; the total does not change.
    """

    def __init__(self, target: Target, multiple: float = 1.0, min_alive: int = 0) -> None:
        self.target = target
        self.name = target.name
        self.multiple = multiple
        self.unit_dim = next((dim for name, dim in UNITS.items() if target.name.endswith(f"{name}.weight")), None)
        self.min_alive = min_alive if self.unit_dim is not None else 0
        self._threshold = WarmThreshold()
        self._scarce: Tensor | None = None  # units that lately had no more than they need

    @property
    def weight(self) -> Tensor:
        """Return the weights as a matrix `(out, in)` that shares their memory."""
        return self.target.weight

    def density(self, density: float) -> float:
        """Return the density of this tensor at a density of the model."""
        return float(min(Fraction(1), self._share(density)))

    def n_kept(self, density: float) -> int:
        """Return how many weights are kept at a density of the model."""
        numel = self.weight.numel()
        return min(numel, math.floor(self._share(density) * numel))

    def _share(self, density: float) -> Fraction:
        return _decimal(self.multiple) * _decimal(density)

    def check(self, density: float) -> None:
        """Refuse a density that leaves too few weights."""
        n, units = self.n_kept(density), 0 if self.unit_dim is None else self.weight.shape[self.unit_dim]
        if n < max(1, self.min_alive * units):
            needs = (
                f"min_alive {self.min_alive} of {units} units needs {self.min_alive * units}" if n else "that is none"
            )
            raise UserError(
                f"WeightSparse: density {self.density(density)} keeps {n} of the {self.weight.numel()} weights of "
                f"{self.name}, and {needs}: raise density{' or lower min_alive' if n else ''}"
            )

    @torch.no_grad()
    def sparsify(self, weight: Tensor, k: int) -> None:
        """Zero all but k weights `(out, in)`, in place."""
        if k == weight.numel():
            return
        scores = weight.abs()
        if not self.min_alive:
            zero_where_not(weight, self._kept(scores, k))
            return
        poor = self._scarce
        while not scores.isnan().any():  # protecting some takes from others, who may be poor then
            if poor is not None and len(poor):
                self._protect(scores, poor)
            kept = self._kept(scores, k)
            alive = kept.sum(1 - self._dim)  # (units,)
            poor = (alive < self.min_alive).nonzero().squeeze(1)
            if not len(poor):
                self._scarce = (alive == self.min_alive).nonzero().squeeze(1)
                zero_where_not(weight, kept)
                return
        raise UserError(f"{self.name} is not a number any more: lower model.lr; the last checkpoint is intact")

    @property
    def _dim(self) -> int:
        assert self.unit_dim is not None
        return self.unit_dim

    def _protect(self, scores: Tensor, units: Tensor) -> None:
        """Give the largest scores of these units an infinite one."""
        rows = scores.index_select(self._dim, units)  # (U, in), or (out, U) -> (U, out)
        rows = rows.T.contiguous() if self._dim else rows
        rows.masked_fill_(keep_highest(rows, rows.shape[1] - self.min_alive), torch.inf)
        scores.index_copy_(self._dim, units, rows.T if self._dim else rows)

    def _kept(self, scores: Tensor, k: int) -> Tensor:
        """Return which of the scores `(out, in)` are among the k largest."""
        cut = self._threshold.find(scores.flatten(), k)
        kept = at_least(scores, cut.threshold)
        if cut.surplus:
            tied = (scores == cut.threshold).flatten().nonzero().squeeze(1)
            kept.view(-1)[tied[: cut.surplus]] = False
        return kept


@lru_cache(maxsize=64)
def _decimal(number: float) -> Fraction:
    """Return a number as a person has written it: three times 0.1 is 0.3."""
    return Fraction(repr(float(number)))
