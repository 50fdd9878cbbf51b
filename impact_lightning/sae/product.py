"""The one dense product of a step, computed in tiles of which only the large entries are kept."""

import torch
from torch import Tensor

from impact_lightning.product import product
from impact_lightning.sae import triton_kernels
from impact_lightning.sae.codes import Codes, codes_from_flat

TILE_BYTES = {"cpu": 2**22, "cuda": 2**30}  # on a processor a tile stays in cache between product and comparison


def products_above(w: Tensor, x: Tensor, least: Tensor, compare_as: torch.dtype | None = None) -> Codes:
    """Return the entries of `x @ w.T` above `least`, without a gradient.

    Args:
        w: One row for each latent, `(F, D)`.
        x: Inputs `(B, D)`.
        least: Strict lower bounds, `(1, B)` or `(F, 1)`.
        compare_as: Compare the bits of the entries as those of another type of the same size.
    """
    n_rows, n_latents = len(x), len(w)
    room = TILE_BYTES.get(x.device.type, TILE_BYTES["cpu"]) // x.element_size()
    tile = min(n_latents, max(64, room // max(n_rows, 1)))
    flats, values = [], []
    for start in range(0, n_latents, tile):
        z = product(w[start : start + tile], x)  # (tile, B): entries come out in the order that weight gradients want
        bounds = least if len(least) == 1 else least[start : start + tile]
        kind = compare_as or z.dtype
        flat, entries = entries_above(z.view(kind), bounds.view(kind))
        values.append(entries.view(z.dtype))
        flats.append(flat.add_(start * n_rows))
    return codes_from_flat(torch.cat(flats), torch.cat(values), n_rows)


def entries_above(z: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ascending flat positions of the few entries of a tile `(T, B)` above `least`, and those entries."""
    if z.is_cuda and triton_kernels.are_available():
        return triton_kernels.entries_above(z, least)
    # Looking for words of eight bytes that hold a hit, and then for the hits, is three times faster than `nonzero`
    # alone. Two-byte numbers compare into their own type faster than into bool, by more than the longer search costs.
    kind, shift = (z.dtype, 2) if z.element_size() == 2 else (torch.bool, 3)  # 2 to the power of shift fit in a word
    hits = z.new_empty(-(-z.numel() >> shift) << shift, dtype=kind)
    torch.gt(z, least, out=hits[: z.numel()].view(z.shape))
    hits[z.numel() :] = 0
    words = hits.view(torch.int64)
    hit = words.nonzero().squeeze(1)
    inside = words.index_select(0, hit).view(kind).nonzero().squeeze(1)
    flat = hit.index_select(0, inside >> shift).bitwise_left_shift_(shift).add_(inside.bitwise_and_((1 << shift) - 1))
    return flat, z.view(-1).index_select(0, flat)
