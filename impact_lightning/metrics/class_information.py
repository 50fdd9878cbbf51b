"""Class information: what it tells about the class of an image that a unit fires."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.class_sums import add_zeros, check_classes, plot_units
from impact_lightning.types import UserError


class ClassInformation(Metric):
    """Mutual information in nats between a unit's firing, `x > threshold`, and the class of the image.

    The plug-in estimate, from counts: exact on any number of ranks. It is too large by about `(C - 1) / 2N`, which
    permuted labels show.

    Args:
        n_units: Number K of units.
        n_classes: Number C of classes.
        threshold: What an activation must exceed, one for all units or one for each `(K,)`.

    Example:
        >>> metric = ClassInformation(n_units=1, n_classes=2)
        >>> metric.update(torch.tensor([[5.0], [7.0], [0.0], [-1.0]]), torch.tensor([0, 0, 1, 1]))
        >>> round(metric.compute().exp().item(), 6)
        2.0
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    fired: Tensor
    counts: Tensor
    threshold: Tensor

    def __init__(self, n_units: int, n_classes: int, *, threshold: float | Tensor = 0.0) -> None:
        super().__init__()
        bar = torch.as_tensor(threshold, dtype=torch.float64)
        if bar.shape not in [(), (n_units,)]:
            raise UserError(f"threshold: of shape {tuple(bar.shape)}, but there are {n_units} units")
        if bar.isnan().any():
            raise UserError("threshold: nan, which nothing exceeds")
        add_zeros(self, "fired", (n_classes, n_units), torch.int32)
        self.add_state("counts", torch.zeros(n_classes, dtype=torch.int64), dist_reduce_fx="sum")
        # never changes: as a state it stays float64, and a collection keeps metrics apart that differ in it
        self.add_state("threshold", bar.expand(n_units).clone(), dist_reduce_fx="max")

    def update(self, activations: Tensor, labels: Tensor) -> None:
        """Add one pooled activation per image and unit `(B, K)`, and the images' labels `(B,)`."""
        check_classes(activations, labels, len(self.counts))
        if activations.shape[1] != len(self.threshold):
            raise UserError(f"activations: of {activations.shape[1]} units, but the metric has {len(self.threshold)}")
        labels = labels.long()
        self.fired.index_add_(0, labels, (activations > self.threshold).int())
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    def compute(self) -> Tensor:
        """Return the information of each unit `(K,)`, float64.

        nan for a unit that fires always or never, and where fewer than two classes have images.
        """
        n, counts, fired = self.counts.sum(), self.counts, self.fired.sum(0)  # (), (C,), (K,)
        joint = _n_log_n(self.fired).sum(0) + _n_log_n(counts[:, None] - self.fired).sum(0)  # (K,)
        apart = _n_log_n(fired) + _n_log_n(n - fired) + _n_log_n(counts).sum()
        information = ((joint - apart + _n_log_n(n)) / n).clamp_min(0)  # rounding may make zero negative
        is_defined = (fired > 0) & (fired < n) & ((counts > 0).sum() > 1)
        return torch.where(is_defined, information, torch.nan)

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the information of each unit, in descending order."""
        return plot_units(self.compute() if val is None else val, "information about the class in nats", ax)


def _n_log_n(n: Tensor) -> Tensor:
    return torch.xlogy(n, n.double())  # 0 where n is 0
