"""BatchTopK's selection: the M largest positive pre-activations of the whole batch, exactly."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from impact_lightning.ranks import all_sum, rank_and_world
from impact_lightning.types import UserError

from .codes import Codes
from .order_statistic import AllSum, Cut, float_bits, float_of, nth_largest
from .screen import ScreenName, make_screen

Scope = Literal["global", "local"]

LEAST_SLACK, MOST_SLACK = 0.15, 1.0
SAMPLE = 32  # rows from which the first floor is guessed
KEY_BITS = 62


class Selection(NamedTuple):
    """What a batch keeps."""

    codes: Codes  # of this rank
    cut: float  # the M-th largest pre-activation; 0 where fewer are positive
    n_tokens: int  # of all ranks


class BatchTopKSelection(nn.Module):
    """Keeps the `round(B · k)` largest strictly positive pre-activations of a batch of B tokens.

    Entries that tie at the cut are kept by global row, then by latent. The global row of a rank's row is
    `row · n_ranks + rank`, as an interleaved sampler deals them, so that the kept set does not depend on the number of
    ranks. Nothing here has a gradient.

    Args:
        screen: How candidates are found: in the precision of the weights, or in bfloat16 and then refined.
        scope: Whether the batch is that of all ranks or, as another method, each rank's own.
    """

    floor: Tensor  # () float64: where the next search begins
    slack: Tensor  # () float64: candidates wanted beyond M, relative; grows when a search was in vain

    def __init__(self, screen: ScreenName = "fp32", scope: Scope = "global") -> None:
        super().__init__()
        self.screen = make_screen(screen)
        self.scope = scope
        self.register_buffer("floor", torch.zeros((), dtype=torch.float64))
        self.register_buffer("slack", torch.tensor(LEAST_SLACK, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, k: float) -> Selection:
        """Select among the entries of `x @ w_enc.T + b_enc`.

        Args:
            x: Centred inputs `(B, D)` of this rank.
            w_enc: Encoder `(F, D)`.
            b_enc: Encoder bias `(F,)`.
            k: Mean number of active latents per token; need not be whole.
        """
        rank, world = rank_and_world() if self.scope == "global" else (0, 1)
        total: AllSum = all_sum if world > 1 else _itself
        n_tokens = _count_tokens(x, total)
        m = round(n_tokens * k)
        codes, cut = self._search(x, w_enc, b_enc, m, total)
        if cut is None:
            return Selection(codes, 0.0, n_tokens)
        kept = _keep(codes, cut, m - cut.n_above, rank, world, total)
        return Selection(kept, float_of(cut.bits, x.dtype), n_tokens)

    def _search(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, m: int, total: AllSum) -> tuple[Codes, Cut | None]:
        """Return candidates and the cut among them; lower the floor until it is below the cut."""
        first = float(self.floor) or _guess(x, w_enc, b_enc, m / max(len(x), 1), total)
        for floor in (first, first / 2, 0.0):
            codes = self.screen.above(x, w_enc, b_enc, floor)
            cut = nth_largest(float_bits(codes.values), m, total) if m else None
            if cut is not None:
                self._aim(floor, float_of(cut.bits, x.dtype), codes, m)
                break
            self.slack.mul_(2).clamp_(max=MOST_SLACK)
        return codes, cut
