"""Class entropy: over how many classes the responses of a unit are spread."""

import torch
from torch import Tensor
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.class_sums import ClassSums, Rectify, plot_units
from impact_lightning.metrics.ratio import ratio


class ClassEntropy(ClassSums):
    """Entropy in nats of a unit's class means: `p_c = relu(μ_c) / Σ relu(μ)`, `H = -Σ p_c ln p_c`.

    As it is, IMPACT's Label Entropy: negative activations are part of the means. With activations rectified before,
    it is the entropy of class masses, another number. A unit has `e^H` effective classes.

    Args:
        n_units: Number K of units.
        n_classes: Number C of classes.
        rectify: What is done to activations before they are summed; means are rectified in any case.
        squares: Whether to hold squares too, which entropy does not need, to share the states of metrics that do.

    Example:
        >>> metric = ClassEntropy(n_units=1, n_classes=3)
        >>> metric.update(torch.tensor([[2.0], [2.0], [-1.0]]), torch.tensor([0, 1, 2]))
        >>> round(metric.compute().exp().item(), 6)
        2.0
    """

    def __init__(self, n_units: int, n_classes: int, *, rectify: Rectify = "none", squares: bool = False) -> None:
        super().__init__(n_units, n_classes, rectify=rectify, squares=squares)

    def compute(self) -> Tensor:
        """Return the entropy of each unit `(K,)`, float64.

        nan where no class mean is positive, or where fewer than two classes have images.
        """
        means = self.means().nan_to_num_(0.0).clamp_min_(0)  # (C, K)
        entropy = torch.special.entr(ratio(means, means.sum(0))).sum(0)
        return torch.where((self.counts > 0).sum() > 1, entropy, torch.nan)

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the entropy of each unit, in descending order."""
        return plot_units(self.compute() if val is None else val, "class entropy in nats", ax)
