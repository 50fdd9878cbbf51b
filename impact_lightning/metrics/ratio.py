"""Ratios of totals."""

import torch
from torch import Tensor


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return `numerator / denominator` in float64; nan, never infinity, where the denominator is zero.

    Example:
        >>> ratio(torch.tensor([1, 1]), torch.tensor([4, 0])).tolist()
        [0.25, nan]
    """
    return torch.where(denominator == 0, torch.nan, numerator.double() / denominator)
