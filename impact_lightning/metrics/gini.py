"""Gini index: how unevenly activity is spread over units, or over images."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio
from impact_lightning.metrics.unit_bins import Ranked, SecondPass, checked, sorted_rows


def gini(x: Tensor) -> Tensor:
    """Return the Gini index of each row `(B, n)` in float64, negative numbers as zero; nan where all are.

    It is `Σ (2i - n - 1) x_(i) / (n Σ x)` of the sorted row: 0 where all are equal, `1 - 1/n` where one has everything.

    Example:
        >>> gini(torch.tensor([[1.0, 1.0], [0.0, 3.0], [-1.0, 0.0]])).tolist()
        [0.0, 0.5, nan]
    """
    n = x.shape[1]
    ordered = sorted_rows(x.relu()).double()  # (B, n)
    weight = torch.arange(1 - n, n, 2, dtype=torch.float64, device=x.device)  # (n,)
    return ratio(ordered @ weight, n * ordered.sum(1))


class MeanGini(NamedTuple):
    """Gini index over units."""

    gini: Tensor  # () float64, mean over images; nan without any
    n: Tensor  # () int64, images on which some unit is active


class PopulationGini(Metric):
    """Gini index over the units of each image, negative activations as zero, averaged over images.

    Example:
        >>> metric = PopulationGini()
        >>> metric.update(torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]))
        >>> metric.compute().gini.item(), metric.compute().n.item()
        (0.25, 2)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, activations: Tensor) -> None:
        """Add one activation per image and unit `(B, n)`."""
        values = gini(checked(activations, activations.shape[-1]))
        self.total += values.nansum()
        self.images += (~values.isnan()).sum()

    def compute(self) -> MeanGini:
        """Return the mean, and of how many images."""
        return MeanGini(ratio(self.total, self.images), self.images)

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the mean, or values of it that were kept."""
        return self._plot(self.compute().gini if val is None else val, ax)


class Ginis(NamedTuple):
    """Gini indices over images, `(K,)` float64; nan for units that are never active."""

    gini: Tensor
    error: Tensor  # the exact index is between gini and this much more; 0 is exact


class LifetimeGini(SecondPass):
    """Gini index of each unit over images, negative activations as zero.

    With r the mean rank of an image's bin, it is `Σ x (2r - n - 1) / (n Σ x)`. That is exact where a bin has one value.
    In a bin of h images with several, ranks are off by at most `(h - 1) / 2`, and never in favour of the index: the
    exact one is between this and `(h - 1) / n` more.

    Args:
        edges: Bin edges `(K, E)` of each unit.
        counts: Images in each bin `(K, E + 1)`, from `BinCounts`, of all ranks.

    Example:
        >>> from impact_lightning.metrics.unit_bins import BinCounts, unit_edges
        >>> x = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
        >>> counts = BinCounts(unit_edges(x, bins=16))
        >>> counts.update(x)
        >>> metric = LifetimeGini(counts.edges, counts.compute())
        >>> metric.update(x)
        >>> metric.compute().gini.item(), metric.compute().error.item()
        (0.625, 0.0)
    """

    higher_is_better = None

    weighted: Tensor
    sums: Tensor
    images: Tensor

    def __init__(self, edges: Tensor, counts: Tensor) -> None:
        super().__init__(edges, counts)
        zeros = torch.zeros(len(edges), dtype=torch.float64)
        self.add_state("weighted", zeros, dist_reduce_fx="sum")
        self.add_state("sums", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, activations: Tensor | Ranked) -> None:
        """Add one activation per image and unit `(B, K)`."""
        ranked = self.ranked(activations)
        x = ranked.values.double().relu()  # (B, K)
        self.weighted += (x * (ranked.midranks.T - (self.total + 1))).sum(0)  # less the mean rank, before sums grow
        self.sums += x.sum(0)
        self.images += len(x)

    def compute(self) -> Ginis:
        """Return the indices, after as many images as were counted."""
        self._check(self.images)
        error = ratio((self.widest - 1).clamp_min(0), self.images)
        value = ratio(self.weighted, self.images * self.sums)
        return Ginis(value, torch.where(value.isnan(), torch.nan, error))

    def plot(self, val: Ginis | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the indices of units in descending order."""
        import matplotlib.pyplot as plt

        value = (self.compute() if val is None else val).gini
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        axes.plot(value[~value.isnan()].sort(descending=True).values.tolist())
        axes.set(xlabel="units, most uneven first", ylabel="Gini index over images")
        return figure, axes
