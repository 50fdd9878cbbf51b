"""Relevance maps beside masks of objects: what the scores of localisation share."""

import torch.nn.functional as F
from torch import Tensor

from impact_lightning.types import UserError


def on_pixels(maps: Tensor, masks: Tensor) -> Tensor:
    """Return maps `(B, gh, gw)` on the pixels of masks `(B, h, w)`, bilinear in fp32; refuse what does not fit.

    Args:
        maps: Relevance of patches or pixels.
        masks: Pixels of the object of each image, bool.
    """
    if maps.dim() != 3 or masks.dim() != 3 or len(maps) != len(masks) or maps.is_complex() or 0 in maps.shape[1:]:
        raise UserError(f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} must be (B, h, w) of the same images")
    (h, w), (rows, columns) = masks.shape[1:], maps.shape[1:]
    if h % rows or w % columns or h * columns != w * rows:
        raise UserError(f"maps of {rows} x {columns} do not fit masks of {h} x {w} pixels: sides must divide alike")
    if not bool(maps.isfinite().all()):
        raise UserError("maps: some relevance is not finite")
    return F.interpolate(maps.float()[:, None], (h, w), mode="bilinear", align_corners=False)[:, 0]


def area_share(masks: Tensor) -> Tensor:
    """Return the share of an image that its object covers, float64 `(B,)`: where scores of localisation are by chance.

    Example:
        >>> import torch
        >>> area_share(torch.tensor([[[True, False], [False, False]]])).item()
        0.25
    """
    return masks.double().mean((1, 2))
