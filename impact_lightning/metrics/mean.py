"""The mean of a per-sample score, the same to the last bit for any order, batch size and number of ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric

_SCALE = 2.0**32


class ExactMean(Metric):
    """Mean over samples, summed in fixed point: integers add up to the same sum in any order.

    A value is rounded to 2**-32; the sum may reach 2**31. A value that is not finite, or too large for that, makes
    the mean nan.

    Example:
        >>> metric = ExactMean()
        >>> metric.update(torch.tensor([1.0, 2.0]))
        >>> metric.update(torch.tensor([4.5]))
        >>> metric.compute().item()
        2.5
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    total: Tensor
    samples: Tensor
    unusable: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")  # int64, in units of 2**-32
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("unusable", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add one value per sample `(B,)`."""
        values = values.detach().double().flatten()
        usable = values.abs() < 2.0**20  # also false for nan and inf
        self.total += (torch.where(usable, values, 0.0) * _SCALE).round().long().sum()
        self.samples += values.numel()
        self.unusable += (~usable).sum()

    def compute(self) -> Tensor:
        """Return the mean in float64; nan before any sample."""
        if self.unusable > 0 or self.samples == 0:
            return torch.tensor(torch.nan, dtype=torch.float64, device=self.total.device)
        return self.total.double() / _SCALE / self.samples
