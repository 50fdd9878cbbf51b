"""Energy in the mask: the share of relevance that lies on the object."""

import torch
from torch import Tensor

from impact_lightning.metrics.object_masks import area_share, on_pixels
from impact_lightning.metrics.ratio import ratio


def energy_in_mask(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share of positive relevance inside, float64 `(B,)`; nan without an object, or without relevance.

    Args:
        maps: Relevance `(B, gh, gw)`.
        masks: Pixels of the object of each image, bool `(B, h, w)`.

    Example:
        >>> energy_in_mask(torch.tensor([[[3.0, 1.0, -5.0]]]), torch.tensor([[[True, False, True]]])).item()
        0.75
    """
    positive = on_pixels(maps, masks).double().relu()
    inside = ratio((positive * masks).sum((1, 2)), positive.sum((1, 2)))
    return inside.masked_fill(area_share(masks) == 0, torch.nan)
