"""Sensitivity-n (arXiv 1711.06104): whether the relevance of random subsets follows what their removal costs."""

from typing import Literal

from torch import Tensor

from impact_lightning.metrics.ratio import ratio


def sensitivity_n(mass: Tensor, drops: Tensor, *, kind: Literal["pearson", "spearman"] = "pearson") -> Tensor:
    """Return the correlation over subsets of each image `(B,)` float64; nan where one side is constant.

    Args:
        mass: Sum of the relevance of each subset `(B, M)`.
        drops: How far the score falls without it `(B, M)`.
        kind: Of the numbers, or of their ranks.

    Example:
        >>> import torch
        >>> sensitivity_n(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 4.0, 9.0]]), kind="spearman").item()
        1.0
    """
    x, y = (mid_ranks(side) if kind == "spearman" else side.double() for side in (mass, drops))
    x, y = (side - side.mean(1, keepdim=True) for side in (x, y))
    return ratio((x * y).sum(1), ((x**2).sum(1) * (y**2).sum(1)).sqrt())


def mid_ranks(x: Tensor) -> Tensor:
    """Return the rank of each number in its row `(B, M)` float64, equal ones sharing the mean of their ranks.

    Example:
        >>> import torch
        >>> mid_ranks(torch.tensor([[5.0, 1.0, 5.0]])).tolist()
        [[2.5, 1.0, 2.5]]
    """
    below = (x[:, None] < x[..., None]).sum(2)  # (B, M, M) -> (B, M)
    equal = (x[:, None] == x[..., None]).sum(2)
    return below.double() + (equal + 1).double() / 2
