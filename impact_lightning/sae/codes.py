"""Sparse codes: the few non-zero latents of a batch, without the dense matrix they live in."""

from typing import NamedTuple

import torch
from torch import Tensor


class Codes(NamedTuple):
    """Non-zero codes of a batch, ordered by latent, then by row: the order in which weight gradients are summed."""

    rows: Tensor  # (M,) int64
    latents: Tensor  # (M,) int64, ascending
    values: Tensor  # (M,)

    def dense(self, n_rows: int, n_latents: int) -> Tensor:
        """Return the codes as a matrix `(B, F)`."""
        codes = self.values.new_zeros(n_rows, n_latents)
        codes[self.rows, self.latents] = self.values
        return codes

    def take(self, index: Tensor) -> "Codes":
        """Return the entries at `index`, in its order."""
        return Codes(*(part.index_select(0, index) for part in self))


def codes_from_flat(flat: Tensor, values: Tensor, n_rows: int) -> Codes:
    """Return codes from positions `latent * B + row`, ascending."""
    latents = flat.div(n_rows, rounding_mode="floor")
    return Codes(rows=flat - latents * n_rows, latents=latents, values=values)


def codes_of(dense: Tensor) -> Codes:
    """Return the non-zero entries of a matrix `(B, F)`."""
    latents, rows = dense.T.nonzero(as_tuple=True)
    return Codes(rows=rows, latents=latents, values=dense[rows, latents])


def bounds(sorted_ids: Tensor, n_segments: int) -> Tensor:
    """Return where each segment of a sorted id vector begins, and its end: `(n_segments + 1,)`."""
    edges = torch.arange(n_segments + 1, device=sorted_ids.device)
    return torch.searchsorted(sorted_ids, edges)
