"""Class variance: how much the response of a unit varies over the images of a class, relative to its mean."""

import torch
from torch import Tensor
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.class_sums import ClassSums, blocks, plot_units, variances
from impact_lightning.metrics.ratio import ratio

SMALLEST_MEAN = 1e-3  # of a unit's standard deviation over all images: a smaller mean is no scale to measure by


def relative_deviation(sums: Tensor, squares: Tensor, n: Tensor, spread: Tensor) -> Tensor:
    """Return standard deviation over mean, of a shape that all broadcast to; nan where a mean is no scale.

    Args:
        sums: Sums of activations over the images of a class.
        squares: Sums of their squares.
        n: Images of the class.
        spread: Standard deviation of the unit over all images.
    """
    means = ratio(sums, n)
    is_defined = (spread > 0) & (means.abs() >= SMALLEST_MEAN * spread) & (n > 1)
    deviation = variances(sums, squares, n, squares).sqrt_()
    return torch.where(is_defined, ratio(deviation, means), torch.nan)


class ClassVariance(ClassSums):
    """Standard deviation over mean of each unit over the images of each class, IMPACT's Class Variance.

    Lower is more consistent; negative where the mean is. Both are of the images at hand, without a correction for
    their number.

    Args:
        n_units: Number K of units.
        n_classes: Number C of classes.
        rectify: What is done to activations before they are summed.

    Example:
        >>> metric = ClassVariance(n_units=1, n_classes=2)
        >>> metric.update(torch.tensor([[1.0], [3.0], [0.0], [0.0]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute().tolist()
        [[0.5], [nan]]
    """

    def compute(self) -> Tensor:
        """Return the table `(C, K)`, float64.

        nan where a class has fewer than two images, where a unit is constant over all images, and where the mean is
        closer to zero than a thousandth of the unit's standard deviation over all images.
        """
        total, table = self.squares.sum(0), torch.empty_like(self.sums)
        spread = variances(self.sums.sum(0), total, self.counts.sum(), total).sqrt()  # (K,)
        for rows in blocks(table):
            table[rows] = relative_deviation(self.sums[rows], self.squares[rows], self.counts[rows, None], spread)
        return table

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the mean over classes of each unit, in descending order."""
        table = self.compute() if val is None else val
        return plot_units(table.nanmean(0), "standard deviation / mean, mean over classes", ax)
