"""Order: the rank of every pixel or patch of an image in a relevance map."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.random_bits import random_bits
from impact_lightning.types import UserError


class Order(NamedTuple):
    """Which units of an image come first."""

    rank: Tensor  # (B, h, w) int64, 0 for the most relevant
    relevance: Tensor  # (B, n) float64, of the unit at each rank
    ties: Tensor  # (B,) int64, units beyond the first of each value: the raster decided about them
    is_constant: Tensor  # (B,) bool, the raster decided about all


def order(maps: Tensor, size: tuple[int, int], *, tie_seed: int | None = None) -> Order:
    """Return the order of descending relevance, in fp32: half precision would tie what differs.

    Args:
        maps: Relevance `(B, gh, gw)`, upsampled bilinearly where it is smaller than the image.
        size: Rows and columns of units: of pixels, or of patches.
        tie_seed: Seed of a random order of equal relevance; by default the earlier in the raster is first.

    Example:
        >>> order(torch.tensor([[[1.0, 3.0], [3.0, 0.0]]]), (2, 2)).rank.tolist()
        [[[2, 0], [1, 3]]]
    """
    _check(maps, size)
    maps = maps.detach().float()
    if maps.shape[1:] != size:
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    flat = maps.flatten(1)  # (B, h, w) -> (B, n)
    n = flat.shape[1]
    shuffle = torch.arange(n)
    if tie_seed is not None:
        shuffle = torch.randperm(n, generator=torch.Generator().manual_seed(tie_seed))
    shuffle = shuffle.to(flat.device)
    descending = flat[:, shuffle].sort(dim=1, descending=True, stable=True)
    ties = (descending.values.diff(dim=1) == 0).sum(1)
    rank = ranks(shuffle[descending.indices])
    return Order(rank.view(-1, *size), descending.values.double(), ties, ties == n - 1)


def ranks(places: Tensor) -> Tensor:
    """Return the rank of each unit `(B, n)` from the unit at each rank `(B, n)`."""
    numbers = torch.arange(places.shape[1], device=places.device).expand_as(places)
    return torch.empty_like(places).scatter_(1, places, numbers)


def random_order(known: Order, rows: Tensor, *, seed: int = 0) -> Order:
    """Return a random order of the same relevance; it depends on the seed and the number of an image `(B,)` alone."""
    n_units = known.relevance.shape[1]
    bits = random_bits(seed, rows.cpu().numpy()[:, None], np.arange(n_units)[None])  # (B, n)
    places = torch.from_numpy(bits.argsort(axis=1, kind="stable")).to(known.rank.device)
    of_unit = known.relevance.gather(1, known.rank.flatten(1))  # (B, n)
    return known._replace(rank=ranks(places).view_as(known.rank), relevance=of_unit.gather(1, places))


def tied_share(maps: Tensor) -> Tensor:
    """Return the share of the patches of maps `(B, gh, gw)` tied with another one in fp32, `(B,)` float64.

    Example:
        >>> tied_share(torch.tensor([[[1.0, 3.0], [3.0, 0.0]]])).item()
        0.5
    """
    same = maps.detach().float().flatten(1).sort(dim=1).values.diff(dim=1) == 0  # (B, n - 1)
    return (F.pad(same, (1, 0)) | F.pad(same, (0, 1))).double().mean(1)


def _check(maps: Tensor, size: tuple[int, int]) -> None:
    if maps.dim() != 3 or not maps.is_floating_point():
        raise UserError(f"maps must be floating point of shape (B, h, w), got {maps.dtype} {tuple(maps.shape)}")
    h, w = maps.shape[1:]
    if h == 0 or w == 0 or size[0] % h or size[1] % w or size[0] * w != size[1] * h:
        raise UserError(f"maps of {h} x {w} do not fit {size[0]} x {size[1]} units: sides must divide alike")
    damaged = (~maps.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist()
    if damaged:
        raise UserError(f"maps: the relevance of image {damaged[0]} of the batch is not finite ({len(damaged)} such)")
