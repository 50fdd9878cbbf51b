"""η²: the share of a unit's variance that lies between classes, and the F of its analysis of variance."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.class_sums import ROUNDING, ClassSums, plot_units
from impact_lightning.metrics.ratio import ratio


class Explained(NamedTuple):
    """What classes explain of units, float64; nan for a constant unit, or where fewer than two classes have images."""

    eta_squared: Tensor  # (K,) share of variance between classes
    f: Tensor  # (K,) infinite where images of a class are all alike; nan where no class has two images


class EtaSquared(ClassSums):
    """One-way analysis of variance of each unit: `η² = Σ n_c (μ_c - μ)² / Σ (x - μ)²`.

    `F = η² / (1 - η²) · (N - C′) / (C′ - 1)`, with C′ the classes that have images. `expected_eta_squared` is the
    null: what any unit is expected to have when labels are permuted.

    Args:
        n_units: Number K of units.
        n_classes: Number C of classes.
        rectify: What is done to activations before they are summed.

    Example:
        >>> metric = EtaSquared(n_units=1, n_classes=2)
        >>> metric.update(torch.tensor([[5.0], [7.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute().eta_squared.item(), metric.compute().f.item()
        (0.8, 8.0)
    """

    def compute(self) -> Explained:  # type: ignore[override]  # not the means
        """Return η² and F of each unit."""
        n, counts = self.counts.sum(), self.counts[:, None]  # (), (C, 1)
        classes = (counts > 0).sum()
        mean = ratio(self.sums.sum(0), n)  # (K,)
        # sums of squares of deviations, (K,); a class without images has none
        between = (counts * (self.means() - mean) ** 2).nansum(0)
        within = (counts * self.variances()).nansum(0)
        total = between + within
        is_undefined = (total <= ROUNDING * (n + 8) * self.squares.sum(0)) | (classes < 2)
        f = between / within * ratio(n - classes, classes - 1)
        return Explained(*(part.masked_fill(is_undefined, torch.nan) for part in (between / total, f)))

    def plot(self, val: Explained | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:  # type: ignore[override]
        """Plot η² of each unit, in descending order."""
        return plot_units((self.compute() if val is None else val).eta_squared, "η²", ax)


def expected_eta_squared(n: int, n_classes: int) -> float:
    """Return the mean of η² over all permutations of the labels: exact, and the same for every unit.

    Args:
        n: Number of images.
        n_classes: Number of classes that have images.

    Example:
        >>> expected_eta_squared(n=11, n_classes=3)
        0.2
    """
    return (n_classes - 1) / (n - 1) if n > 1 else math.nan
