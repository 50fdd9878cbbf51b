"""The mean over images of a score, how far it would move with other images, and how many images have none."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.bootstrap import BootstrapSums, interval_of_draws
from impact_lightning.metrics.ratio import ratio
from impact_lightning.results import Interval

_SCALE = 2.0**32


class MeanOverImages(NamedTuple):
    """A mean, float64; nan without any image."""

    mean: Tensor  # ()
    low: Tensor  # () the bootstrap interval of 95 %
    high: Tensor  # ()
    n: Tensor  # () int64, images that have a score
    undefined: Tensor  # () int64, images that have none


class ImageMean(BootstrapSums):
    """Mean over images of one number each, with its bootstrap interval.

    Numbers are rounded to 2**-32 and summed as integers that float64 holds exactly: the mean and its interval are the
    same to the last bit in any order, batches and number of ranks. Scores that are nan are left out, and counted. A
    score may reach 2**20, and there may be 2**20 images.

    Two metrics of one seed draw the same images: the interval of a difference is that of a metric which was given the
    differences.

    Args:
        draws: Number of draws of the bootstrap.
        seed: Their seed.

    Example:
        >>> metric = ImageMean(draws=10)
        >>> metric.update(torch.tensor([1.0, 2.0, torch.nan]), torch.tensor([4, 7, 9]))
        >>> metric.compute().mean.item(), metric.compute().n.item(), metric.compute().undefined.item()
        (1.5, 2, 1)
    """

    undefined: Tensor

    def __init__(self, *, draws: int = 200, seed: int = 0) -> None:
        super().__init__(3, draws=draws, seed=seed)
        self.add_state("undefined", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, images: Tensor) -> None:
        """Add a score `(B,)` for each of the images with these numbers `(B,)`."""
        scores = scores.detach().double()
        if bool((scores.abs() >= 2.0**20).any()):
            raise ValueError(f"scores must be below 2**20, got {scores.abs().max():g}")
        is_defined = ~scores.isnan()
        value = (torch.where(is_defined, scores, 0.0) * _SCALE).round() / _SCALE
        whole = value.floor()
        super().update(torch.stack([whole, (value - whole) * _SCALE, is_defined.double()], dim=1), images)
        self.undefined += (~is_defined).sum()

    def means(self) -> Tensor:
        """Return the mean of the data and of each draw `(1 + R,)`."""
        whole, parts, n = self.sums.unbind(1)
        return ratio(whole + parts / _SCALE, n)

    def interval(self) -> Interval:
        """Return the bootstrap interval of the mean."""
        result = self.compute()
        how = interval_of_draws(torch.zeros(1 + self.draws)).how
        return Interval(float(result.low), float(result.high), how)

    def compute(self) -> MeanOverImages:  # type: ignore[override]  # not the sums
        """Return the mean, its interval, and of how many images."""
        means = self.means()
        found = interval_of_draws(means)
        low, high = means.new_tensor(found.low), means.new_tensor(found.high)
        return MeanOverImages(means[0], low, high, self.sums[0, 2].long(), self.undefined)

    def plot(self, val: MeanOverImages | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the mean and its interval."""
        import matplotlib.pyplot as plt

        found = self.compute() if val is None else val
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        mean, low, high = (float(part) for part in found[:3])
        axes.errorbar([0], [mean], yerr=[[mean - low], [high - mean]], fmt="o", capsize=4)
        axes.set(xticks=[], ylabel=f"mean over {int(found.n):,} images")
        return figure, axes
