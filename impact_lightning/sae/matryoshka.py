"""Matryoshka BatchTopK: the first latents must reconstruct on their own, too."""

from collections.abc import Sequence
from typing import Any

from impact_lightning.sae.batch_topk import BatchTopK
from impact_lightning.types import UserError

SHARES = (1, 3, 7, 16)  # of 16: groups of 1/16, 1/8, 1/4 and 9/16 of the latents


class Matryoshka(BatchTopK):
    """Matryoshka BatchTopK (arXiv 2503.17547): one selection over all latents, one loss for each prefix of them.

    Args:
        d_in: Width of the input.
        n_latents: Number of features.
        prefixes: Ascending numbers of latents that must reconstruct on their own, the last being all; None takes
            1/16, 3/16, 7/16 and all.
        prefix_weights: Weight of each prefix in the loss; None gives each the same share.
        options: See `BatchTopK`.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        prefixes: Sequence[int] | None = None,
        prefix_weights: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, **options)
        self.prefixes = tuple(prefixes or [n_latents * share // 16 for share in SHARES])
        if self.prefixes[0] < 1 or list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[-1] != n_latents:
            raise UserError(f"prefixes: {list(self.prefixes)} must ascend from 1 or more to all {n_latents} latents")
        self.prefix_weights = tuple(prefix_weights or [1 / len(self.prefixes)] * len(self.prefixes))
        if len(self.prefix_weights) != len(self.prefixes):
            raise UserError(f"prefix_weights: {len(self.prefix_weights)} weights for {len(self.prefixes)} prefixes")
