"""Sparseness: Treves-Rolls and Hoyer, of a unit over images and of an image over units."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio
from impact_lightning.metrics.unit_bins import checked


class Sparseness(NamedTuple):
    """Two scores from 0, all equal, to 1, only one active; float64, nan where nothing is active."""

    treves_rolls: Tensor  # (1 - a) / (1 - 1/n) with a = (Σr/n)² / (Σr²/n)
    hoyer: Tensor  # (√n - Σr / √Σr²) / (√n - 1)


class MeanSparseness(NamedTuple):
    """Means over images, float64; nan without any."""

    treves_rolls: Tensor  # ()
    hoyer: Tensor  # ()
    n: Tensor  # () int64, images on which some unit is active


def sparseness(sums: Tensor, squares: Tensor, n: Tensor | int) -> Sparseness:
    """Return the sparseness of n numbers from their sum and the sum of their squares.

    Example:
        >>> [score.item() for score in sparseness(torch.tensor(2.0), torch.tensor(4.0), n=4)]
        [1.0, 1.0]
    """
    n = torch.as_tensor(n, dtype=torch.float64, device=sums.device)
    treves_rolls = ratio(n - ratio(sums.double() ** 2, squares), n - 1)
    hoyer = ratio(n.sqrt() - ratio(sums, squares.double().sqrt()), n.sqrt() - 1)
    return Sparseness(treves_rolls, hoyer)


class LifetimeSparseness(Metric):
    """Sparseness of each unit over images, negative activations as zero.

    Args:
        n_units: Number K of units.

    Example:
        >>> metric = LifetimeSparseness(n_units=2)
        >>> metric.update(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        >>> metric.compute().treves_rolls.tolist()
        [1.0, 0.0]
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sums: Tensor
    squares: Tensor
    images: Tensor

    def __init__(self, n_units: int) -> None:
        super().__init__()
        zeros = torch.zeros(n_units, dtype=torch.float64)
        self.add_state("sums", zeros, dist_reduce_fx="sum")
        self.add_state("squares", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, activations: Tensor) -> None:
        """Add one activation per image and unit `(B, K)`."""
        x = checked(activations, len(self.sums)).relu().double()
        self.sums += x.sum(0)
        self.squares += (x**2).sum(0)
        self.images += len(x)

    def compute(self) -> Sparseness:
        """Return the sparseness of each unit, `(K,)`; nan before two images."""
        return sparseness(self.sums, self.squares, self.images)

    def plot(self, val: Sparseness | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the sparseness of units, each score in descending order."""
        import matplotlib.pyplot as plt

        scores = self.compute() if val is None else val
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        for label, score in (("Treves-Rolls", scores.treves_rolls), ("Hoyer", scores.hoyer)):
            axes.plot(score[~score.isnan()].sort(descending=True).values.tolist(), label=label)
        axes.set(xlabel="units, sparsest first", ylabel="sparseness over images")
        axes.legend()
        return figure, axes


class PopulationSparseness(Metric):
    """Sparseness over the units of each image, negative activations as zero, averaged over images.

    Example:
        >>> metric = PopulationSparseness()
        >>> metric.update(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]))
        >>> metric.compute().treves_rolls.item(), metric.compute().n.item()
        (0.5, 2)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    totals: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("totals", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, activations: Tensor) -> None:
        """Add one activation per image and unit `(B, n)`."""
        x = checked(activations, activations.shape[-1]).relu().double()
        scores = torch.stack(sparseness(x.sum(1), (x**2).sum(1), x.shape[1]))  # (2, B)
        self.totals += scores.nansum(1)
        self.images += (~scores[0].isnan()).sum()

    def compute(self) -> MeanSparseness:
        """Return the means, and of how many images."""
        treves_rolls, hoyer = ratio(self.totals, self.images)
        return MeanSparseness(treves_rolls, hoyer, self.images)

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the mean Treves-Rolls sparseness, or values of it that were kept."""
        return self._plot(self.compute().treves_rolls if val is None else val, ax)
