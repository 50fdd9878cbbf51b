"""Max-sensitivity (arXiv 1901.09392): how far a map moves when noise is added to its image."""

import torch
from torch import Tensor

from impact_lightning.metrics.ratio import ratio


def max_sensitivity(maps: Tensor, noisy: Tensor) -> Tensor:
    """Return the largest relative change of each map `(B,)` float64; nan for a map of zeros.

    Args:
        maps: Of the images `(B, h, w)`.
        noisy: Of M noisy copies of each `(B, M, h, w)`.

    Example:
        >>> maps = torch.tensor([[[3.0, 4.0]]])
        >>> max_sensitivity(maps, torch.stack([maps, maps + torch.tensor([3.0, 4.0])], dim=1)).item()
        1.0
    """
    return changes(maps, noisy).amax(1)


def mean_sensitivity(maps: Tensor, noisy: Tensor) -> Tensor:
    """Return the mean relative change of each map `(B,)`; see `max_sensitivity`."""
    return changes(maps, noisy).mean(1)


def changes(maps: Tensor, noisy: Tensor) -> Tensor:
    """Return `‖φ(x + e) - φ(x)‖ / ‖φ(x)‖` of each copy `(B, M)` float64."""
    own = maps.double().flatten(1)[:, None]  # (B, h, w) -> (B, 1, n)
    moved = noisy.double().flatten(2) - own  # (B, M, n)
    return ratio(torch.linalg.vector_norm(moved, dim=2), torch.linalg.vector_norm(own, dim=2))
