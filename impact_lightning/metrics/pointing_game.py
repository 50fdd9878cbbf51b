"""Pointing game (arXiv 1608.00507): whether the most relevant pixel is on the object."""

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.metrics.object_masks import area_share, on_pixels
from impact_lightning.metrics.ratio import ratio

LARGEST = 0.5  # share of the image above which any map would hit


def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: int = 0) -> Tensor:
    """Return whether each map points at its object, float64 `(B,)`; nan without an object, or with too large a one.

    Of several pixels of equal relevance, the share that hits counts: a constant map scores the area of the object.

    Args:
        maps: Relevance `(B, gh, gw)`.
        masks: Pixels of the object of each image, bool `(B, h, w)`.
        tolerance: Distance from the object in pixels that is a hit; 15 as published.

    Example:
        >>> masks = torch.tensor([[[True, False, False]]])
        >>> maps = torch.tensor([[[1.0, 1.0, 0.0]]])
        >>> pointing_game(maps, masks).item(), pointing_game(maps, masks, tolerance=1).item()
        (0.5, 1.0)
    """
    relevance = on_pixels(maps, masks)
    is_peak = relevance == relevance.amax((1, 2), keepdim=True)
    hit = ratio((is_peak & _grown(masks, tolerance)).sum((1, 2)), is_peak.sum((1, 2)))
    share = area_share(masks)
    return hit.masked_fill((share == 0) | (share > LARGEST), torch.nan)


def _grown(masks: Tensor, distance: int) -> Tensor:
    """Return masks with all pixels within a Euclidean distance `(B, h, w)`."""
    if distance == 0:
        return masks
    offsets = torch.arange(-distance, distance + 1, device=masks.device)
    disc = (offsets[:, None] ** 2 + offsets**2 <= distance**2).float()
    return F.conv2d(masks.float()[:, None], disc[None, None], padding=distance)[:, 0] > 0.5
