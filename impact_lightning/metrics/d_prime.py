"""d′: how far the responses of a unit to a class lie from those to all other images, in standard deviations."""

import torch
from torch import Tensor
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.class_sums import ClassSums, blocks, plot_best, variances
from impact_lightning.metrics.ratio import ratio


class DPrime(ClassSums):
    """Discriminability `d′ = (μ_c - μ_r) / √((σ_c² + σ_r²) / 2)` of each class c and unit, r being all other images.

    Args:
        n_units: Number K of units.
        n_classes: Number C of classes.
        rectify: What is done to activations before they are summed.

    Example:
        >>> metric = DPrime(n_units=1, n_classes=2)
        >>> metric.update(torch.tensor([[5.0], [7.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute().tolist()
        [[4.0], [-4.0]]
    """

    def compute(self) -> Tensor:
        """Return d′ `(C, K)`, float64; nan where a side has fewer than two images, or both sides are constant."""
        total, squares, table = self.sums.sum(0), self.squares.sum(0), torch.empty_like(self.sums)
        for rows in blocks(table):
            own, own_squares, n = self.sums[rows], self.squares[rows], self.counts[rows, None]
            rest, rest_squares, others = total - own, squares - own_squares, self.counts.sum() - n
            spread = variances(own, own_squares, n, own_squares) + variances(rest, rest_squares, others, squares)
            d_prime = ratio(ratio(own, n) - ratio(rest, others), (spread / 2).sqrt())
            table[rows] = d_prime.masked_fill_((n < 2) | (others < 2), torch.nan)
        return table

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the largest d′ of each unit over classes, in descending order."""
        return plot_best(self.compute() if val is None else val, "largest d′ over classes", ax)
