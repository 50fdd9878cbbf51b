"""Class means: the mean over the images of every class of numbers that each image has."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.class_sums import plot_best
from impact_lightning.metrics.ratio import ratio


class ClassMeans(Metric):
    """Mean of each number over the images of each class for which it is defined.

    Args:
        width: Numbers W of an image.
        n_classes: Number C of classes.

    Example:
        >>> metric = ClassMeans(width=1, n_classes=2)
        >>> metric.update(torch.tensor([[1.0], [3.0], [torch.nan]]), torch.tensor([0, 0, 1]))
        >>> metric.compute().tolist()
        [[2.0], [nan]]
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sums: Tensor
    counts: Tensor

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(n_classes, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(n_classes, width, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor, labels: Tensor) -> None:
        """Add numbers `(B, W)`, nan where undefined, and labels `(B,)`."""
        self.sums.index_add_(0, labels, values.double().nan_to_num(0.0))
        self.counts.index_add_(0, labels, (~values.isnan()).long())

    def compute(self) -> Tensor:
        """Return the means `(C, W)`; nan where there is nothing to average."""
        return ratio(self.sums, self.counts)

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the largest class mean of each number, in descending order."""
        return plot_best(self.compute() if val is None else val, "largest class mean", ax)
