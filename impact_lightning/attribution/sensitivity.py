"""Sensitivity: what random subsets of patches cost, and how maps move under noise: numbers that metrics take."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from impact_lightning.attribution.curves import Subject
from impact_lightning.attribution.order import order
from impact_lightning.attribution.protocols import Removal
from impact_lightning.attribution.scores import Score
from impact_lightning.attribution.substrates import Drop, ZeroNorm
from impact_lightning.random_bits import random_bits
from impact_lightning.types import UserError

ZERO_NORM = ZeroNorm()


class Samples(NamedTuple):
    """Random removals of each image, float64."""

    mass: Tensor  # (B, M) relevance of what is removed
    drops: Tensor  # (B, M) how far the score falls


def random_subsets(rows: Tensor, grid: tuple[int, int], *, share: float, n: int, seed: int = 0) -> Tensor:
    """Return random subsets of patches, bool `(B, n, h, w)`, pure functions of the seed and the number of an image.

    Args:
        rows: Numbers of the images `(B,)`.
        grid: Rows and columns of patches.
        share: Of the patches in a subset.
        n: Number of subsets.
        seed: Their seed.
    """
    size = round(share * grid[0] * grid[1])
    if not 0 < size < grid[0] * grid[1]:
        raise UserError(f"share: {share} of {grid[0] * grid[1]} patches are {size}; some must stay, and some go")
    ids = rows.cpu().numpy()[:, None, None], np.arange(n)[:, None], np.arange(grid[0] * grid[1])
    bits = random_bits(seed, *ids)  # (B, n, patches)
    is_in = bits <= np.partition(bits, size - 1, axis=2)[:, :, size - 1 : size]
    return torch.from_numpy(is_in).view(len(rows), n, *grid).to(rows.device)


def random_squares(rows: Tensor, grid: tuple[int, int], *, side: int, n: int, seed: int = 0) -> Tensor:
    """Return random squares of patches, bool `(B, n, h, w)`; see `random_subsets`.

    Args:
        rows: Numbers of the images `(B,)`.
        grid: Rows and columns of patches.
        side: Patches of a side.
        n: Number of squares.
        seed: Their seed.
    """
    if not 0 < side <= min(grid):
        raise UserError(f"side: there is no square of {side} patches in {grid[0]} x {grid[1]}")
    bits = random_bits(seed, rows.cpu().numpy()[:, None, None], np.arange(n)[:, None], np.arange(2))  # (B, n, 2)
    first = (bits % (np.array(grid, np.uint64) - np.uint64(side - 1))).astype(np.int64)  # where squares begin
    is_row, is_column = (
        (np.arange(size) >= at[:, :, None]) & (np.arange(size) < at[:, :, None] + side)
        for size, at in zip(grid, np.moveaxis(first, 2, 0), strict=True)
    )
    return torch.from_numpy(is_row[..., None] & is_column[:, :, None]).to(rows.device)


def drops(
    subject: Subject,
    maps: Tensor,
    removed: Tensor,
    *,
    substrate: Removal = ZERO_NORM,
    score: Score = "probability",
) -> Samples:
    """Return what removals cost, and the relevance of what they remove.

    Args:
        subject: The images.
        maps: Relevance of their patches `(B, h, w)`.
        removed: Patches that each removal takes, bool `(B, M, h, w)`.
        substrate: What takes their place.
        score: What is read off the logits.
    """
    grid = subject.units(maps, "patches")
    if removed.shape[0] != len(maps) or tuple(removed.shape[2:]) != grid:
        raise UserError(f"removed {tuple(removed.shape)} must be (B, M, {grid[0]}, {grid[1]}) of {len(maps)} images")
    known = order(maps.to(subject.images.device), grid)
    relevance = known.relevance.gather(1, known.rank.flatten(1))  # (B, P), of each patch
    counts = removed.flatten(2).sum(2)  # (B, M)
    if isinstance(substrate, Drop) and bool((counts != counts[:1]).any()):
        raise UserError("removed: where patches are dropped, a removal must take as many of every image")
    sizes = counts[0].tolist()
    values = subject.responses(lambda i, at: removed[i, at], sizes, substrate, score, in_patches=True)  # (B, M)
    clean = subject.scores(subject.logits, torch.arange(len(maps), device=values.device), score)
    return Samples(torch.einsum("bmp,bp->bm", removed.flatten(2).double(), relevance), clean[:, None] - values)


def noisy_maps(
    method: Callable[[Tensor], Tensor],
    images: Tensor,
    rows: Tensor,
    *,
    radius: float = 0.02,
    n: int = 10,
    seed: int = 0,
) -> Tensor:
    """Return maps of noisy copies of images `(B, n, h, w)`.

    Args:
        method: Turns images `(B, C, h, w)` into maps `(B, h, w)`.
        images: Normalised images `(B, C, h, w)`.
        rows: Their numbers `(B,)`, of which the noise is a function.
        radius: Noise is uniform between plus and minus this, after normalisation.
        n: Number of copies.
        seed: Seed of the noise.
    """
    seeds = random_bits(seed, rows.cpu().numpy()[:, None], np.arange(n)).astype(np.int64)  # (B, n)
    copies = []
    for column in seeds.T.tolist():
        drawn = [torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(bits)) for bits in column]
        copies.append(method(images + radius * (2 * torch.stack(drawn).to(images) - 1)))
    return torch.stack(copies, dim=1)
