"""The rules by which relevance goes down through sums and divisions (Chefer et al. 2021, arXiv 2012.09838)."""

import torch
from torch import Tensor

EPS = 1e-9


def safe_div(a: Tensor, b: Tensor, eps: float = EPS) -> Tensor:
    """Return `a / (b + eps)`, and 0 where b is exactly 0.

    Example:
        >>> safe_div(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    is_kept = torch.ne(b, 0, out=torch.empty_like(b))  # as floats: masks of booleans are slow on CPUs
    return is_kept.mul_(a).div_(b + eps)


def split_sum(a: Tensor, b: Tensor, total: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Split the relevance of `total = a + b`, `(B, T, D)` each: sums of the shares are as abs(sum r_a) : abs(sum r_b).

    Sums are over tokens and channels of one image; together the shares have the sum of `relevance`.
    """
    s = safe_div(relevance, total)
    r_a, r_b = a * s, b * s
    sum_a, sum_b, sum_r = (r.sum((1, 2), keepdim=True) for r in (r_a, r_b, relevance))
    both = sum_a.abs() + sum_b.abs()
    r_a *= safe_div(safe_div(sum_a.abs(), both) * sum_r, sum_a)
    r_b *= safe_div(safe_div(sum_b.abs(), both) * sum_r, sum_b)
    return r_a, r_b
