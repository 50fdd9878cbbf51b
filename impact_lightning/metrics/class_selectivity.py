"""Class selectivity: how much more a unit responds to its best class than to the others (arXiv 1803.06959)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.class_sums import ClassSums, Rectify, plot_units

EPS = 1e-7


class Selectivity(NamedTuple):
    """Class selectivity index of units."""

    # (K,) float64; nan for a unit that is silent, or where fewer than two classes have images
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    best: Tensor  # (K,) int64, the class with the largest mean, the lower one of two; -1 where nan


class ClassSelectivity(ClassSums):
    """Class selectivity index (CSI) `(μ_max - μ_rest) / (μ_max + μ_rest + 1e-7)`.

    `μ_max` is the largest class mean of a unit, `μ_rest` the mean of its other class means, so that classes count the
    same whatever their size; classes without images are left out. A unit that fires rarely has a large index even when
    labels are permuted: without that null the index says little.

    Args:
        n_units: Number K of units.
        n_classes: Number C of classes.
        rectify: What is done to activations; the index lies in [0, 1] only where they are not negative.
        squares: Whether to hold squares too, which the index does not need, to share the states of metrics that do.

    Example:
        >>> metric = ClassSelectivity(n_units=1, n_classes=3)
        >>> metric.update(torch.tensor([[3.0], [1.0], [-5.0]]), torch.tensor([0, 1, 2]))
        >>> round(metric.compute().index.item(), 4), metric.compute().best.item()
        (0.7143, 0)
    """

    def __init__(self, n_units: int, n_classes: int, *, rectify: Rectify = "relu", squares: bool = False) -> None:
        super().__init__(n_units, n_classes, rectify=rectify, squares=squares)

    def compute(self) -> Selectivity:  # type: ignore[override]  # not the means
        """Return the index and the best class of each unit."""
        has_images = self.counts > 0
        means = self.means()  # (C, K)
        means[~has_images] = -torch.inf
        largest, best = means.max(0)
        is_silent = (means[has_images] == 0).all(0)
        means[~has_images] = 0.0
        means.scatter_(0, best[None], 0.0)  # not the sum less the largest, which would leave a rounding error
        others = has_images.sum() - 1
        rest = means.sum(0) / others
        index = (largest - rest) / (largest + rest + EPS)
        index = torch.where(is_silent | (others < 1), torch.nan, index)
        return Selectivity(index, torch.where(index.isnan(), -1, best))

    def plot(self, val: Selectivity | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:  # type: ignore[override]
        """Plot the index of each unit, in descending order."""
        return plot_units((self.compute() if val is None else val).index, "class selectivity index", ax)
