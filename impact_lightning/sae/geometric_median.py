"""The geometric median: the centre that a few far tokens do not move."""

import torch
from torch import Tensor


def geometric_median(x: Tensor, *, steps: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Return `argmin_m Σ_i ‖x_i − m‖` of rows `(N, D)`, by Weiszfeld's iteration in float64: `(D,)`.

    Args:
        x: The rows.
        steps: Iterations at most.
        tolerance: Stop when the median moves by less, relative to the mean distance of the rows.

    Example:
        >>> geometric_median(torch.tensor([[0.0], [1.0], [1000.0]])).round(decimals=3).item()
        1.0
    """
    rows = x.double()
    median = rows.mean(0)
    for _ in range(steps):
        distance = torch.linalg.vector_norm(rows - median, dim=1)  # (N,)
        weight = 1 / distance.clamp_min(1e-12 * float(distance.mean()) + 1e-100)  # a row may be the median itself
        moved = (weight @ rows) / weight.sum()
        is_done = torch.linalg.vector_norm(moved - median) <= tolerance * distance.mean()
        median = moved
        if is_done:
            break
    return median.to(x.dtype)
