"""TopK: the number of active latents is fixed for every token."""

from typing import Any

import torch
from torch import Tensor

from impact_lightning.sae.codes import Codes
from impact_lightning.sae.sparse_autoencoder import SparseSAE
from impact_lightning.types import UserError

TILE = 2**20  # pre-activations computed at once


class TopK(SparseSAE):
    """TopK (arXiv 2406.04093): the `k` largest positive codes of each token.

    Args:
        d_in: Width of the input.
        n_latents: Number of features.
        k: Active latents of each token.
        options: See `SparseSAE`.
    """

    def __init__(self, d_in: int, n_latents: int, *, k: int = 32, **options: Any) -> None:
        super().__init__(d_in, n_latents, k=k, **options)
        if k != int(k) or k < 1:
            raise UserError(f"k: {k} active latents for each token must be a whole number of 1 or more")

    def choose(self, xc: Tensor, n_tokens: int) -> Codes:
        """See `SparseSAE.choose`."""
        parts = []
        height, k = max(1, TILE // self.n_latents), max(1, round(self.k * self.k_factor))
        for start in range(0, len(xc), height):
            z = torch.addmm(self.b_enc, xc[start : start + height], self.w_enc.T)  # (height, F)
            rows, latents = largest_of_row(z, k).nonzero(as_tuple=True)
            parts.append(Codes(rows + start, latents, z[rows, latents]))
        rows, latents, values = (torch.cat(column) for column in zip(*parts, strict=True))
        order = torch.argsort(latents, stable=True)  # rows ascend within a latent
        return Codes(rows[order], latents[order], values[order])

    def activate(self, z: Tensor) -> Tensor:
        """See `SAE.activate`."""
        flat = z.flatten(0, -2)  # (..., F) -> (N, F)
        return (flat * largest_of_row(flat, int(self.k))).view_as(z)


def largest_of_row(z: Tensor, k: int) -> Tensor:
    """Return where the `k` largest positive entries of each row of `(N, F)` are; of equals, the first."""
    last = z.topk(min(k, z.shape[1]), dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = z > last, z == last
    room = k - above.sum(1, keepdim=True)
    if bool((equal.sum(1, keepdim=True) > room).any()):
        equal &= equal.cumsum(1) <= room
    return (above | equal) & (z > 0)
