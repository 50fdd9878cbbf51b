"""Rank accuracy (arXiv 2003.07258): of as many top pixels as the object has, the share that is on it."""

import torch
from torch import Tensor

from impact_lightning.metrics.object_masks import on_pixels
from impact_lightning.metrics.ratio import ratio


def rank_accuracy(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share inside of the top pixels, float64 `(B,)`; nan without an object.

    Of equal relevance the earlier in the raster is first.

    Args:
        maps: Relevance `(B, gh, gw)`.
        masks: Pixels of the object of each image, bool `(B, h, w)`.

    Example:
        >>> rank_accuracy(torch.tensor([[[3.0, 2.0, 1.0]]]), torch.tensor([[[True, False, True]]])).item()
        0.5
    """
    places = on_pixels(maps, masks).flatten(1).sort(dim=1, descending=True, stable=True).indices  # (B, n)
    inside = masks.flatten(1).gather(1, places)
    area = inside.sum(1)
    is_top = torch.arange(inside.shape[1], device=inside.device) < area[:, None]
    return ratio((inside & is_top).sum(1), area)
