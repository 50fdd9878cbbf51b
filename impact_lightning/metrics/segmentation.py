"""Segmentation: what lies above the mean of a relevance map, beside the object."""

from typing import NamedTuple

import torch
from torch import Tensor

from impact_lightning.metrics.object_masks import area_share, on_pixels
from impact_lightning.metrics.ratio import ratio


class Segmentation(NamedTuple):
    """Scores of each image, float64 `(B,)`; nan without an object."""

    pixel_accuracy: Tensor
    iou: Tensor  # mean over object and background of intersection over union


def segmentation(maps: Tensor, masks: Tensor) -> Segmentation:
    """Return how well pixels of more relevance than the mean of their map cover the object (arXiv 2012.09838).

    Args:
        maps: Relevance `(B, gh, gw)`.
        masks: Pixels of the object of each image, bool `(B, h, w)`.

    Example:
        >>> found = segmentation(torch.tensor([[[3.0, 3.0, 0.0, 0.0]]]), torch.tensor([[[True, False, False, False]]]))
        >>> found.pixel_accuracy.item(), round(found.iou.item(), 4)
        (0.75, 0.5833)
    """
    relevance = on_pixels(maps, masks).double()
    found = relevance > relevance.mean((1, 2), keepdim=True)
    ious = [
        ratio((ours & theirs).sum((1, 2)), (ours | theirs).sum((1, 2)))
        for ours, theirs in ((found, masks), (~found, ~masks))
    ]
    iou = torch.stack(ious).nanmean(0)  # an image that is all object has no background to find
    is_empty = area_share(masks) == 0
    accuracy = (found == masks).double().mean((1, 2))
    return Segmentation(accuracy.masked_fill(is_empty, torch.nan), iou.masked_fill(is_empty, torch.nan))
