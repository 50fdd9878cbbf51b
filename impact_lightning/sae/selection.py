"""BatchTopK's selection: the M largest positive pre-activations of the whole batch, exactly."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from impact_lightning.ranks import all_sum, rank_and_world
from impact_lightning.sae.codes import Codes
from impact_lightning.sae.order_statistic import AllSum, Cut, float_bits, float_of, nth_largest
from impact_lightning.sae.screen import ScreenName, make_screen

Scope = Literal["global", "local"]

EXCESS = 0.25  # log of the candidates wanted per entry kept: fewer cost less to sort out, and fail more often
LOWER = (1.0, 0.9, 0.75, 0.0)  # floors to try, relative to the first
SAMPLE = 32  # rows from which the first floor is guessed
LAST = 2**62  # beyond every position in a batch


class Selection(NamedTuple):
    """What a batch keeps."""

    codes: Codes  # of this rank
    cut: float  # the M-th largest pre-activation; 0 where fewer are positive


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
    gap: Tensor  # () float64: how far below the last cut that is, relative

    def __init__(self, screen: ScreenName = "fp32", scope: Scope = "global") -> None:
        super().__init__()
        self.screen = make_screen(screen)
        self.scope = scope
        self.register_buffer("floor", torch.zeros((), dtype=torch.float64))
        self.register_buffer("gap", torch.tensor(0.04, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, m: int) -> Selection:
        """Keep the `m` largest positive entries of `x @ w_enc.T + b_enc`, or all positive ones if they are fewer.

        Args:
            x: Centred, finite inputs `(B, D)` of this rank.
            w_enc: Encoder `(F, D)`.
            b_enc: Encoder bias `(F,)`.
            m: How many to keep in the whole batch.
        """
        total: AllSum = all_sum if self.scope == "global" else _itself
        first = float(self.floor) or _guess(x, w_enc, b_enc, m, total)
        for floor in dict.fromkeys(first * share for share in LOWER):
            codes = self.screen.above(x, w_enc, b_enc, floor)
            cut = nth_largest(float_bits(codes.values), m, total)
            if cut:
                value = float_of(cut.bits, x.dtype)
                self._aim(value, math.log(cut.n_found / m))
                return Selection(_keep(codes, cut, m - cut.n_above, len(w_enc), total), value)
            self.gap.mul_(1.5).clamp_(max=0.5)
        self.floor.zero_()
        return Selection(codes if m else codes.take(codes.rows[:0]), 0.0)

    def _aim(self, cut: float, excess: float) -> None:
        """Put the next floor a little below the cut.

        The gap grows at once after a batch with few candidates and shrinks slowly after one with many, so that drift
        and noise of the cut widen it by themselves.
        """
        change = min(max(0.5 * (1 - excess / EXCESS), -0.03), 0.5)
        self.gap.mul_(1 + change).clamp_(max=0.5)
        self.floor.copy_((1 - self.gap) * cut)


def _guess(x: Tensor, w_enc: Tensor, b_enc: Tensor, m: int, total: AllSum) -> float:
    """Return a floor that about `2 m` entries exceed, from a few rows of each rank's batch."""
    sample = x[:: max(len(x) // SAMPLE, 1)]
    z = torch.addmm(b_enc, sample, w_enc.T).view(-1)
    n_rows, n_sampled = total(torch.tensor([len(x), len(sample)], device=x.device)).tolist()
    found = nth_largest(float_bits(z[z > 0]), 2 * m * n_sampled // max(n_rows, 1), total)
    return float_of(found.bits, x.dtype) if found else 0.0


def _keep(codes: Codes, cut: Cut, n_ties: int, n_latents: int, total: AllSum) -> Codes:
    """Return the codes above the cut and, of all ranks' codes at the cut, the first `n_ties` in global order."""
    bits = float_bits(codes.values)
    kept = bits >= cut.bits
    if n_ties < cut.n_equal:
        tied = (bits == cut.bits).nonzero().squeeze(1)
        rank, world = rank_and_world()  # alone, the order is the same
        order = (codes.rows[tied] * world + rank) * n_latents + codes.latents[tied]  # row · F + latent, globally
        last = nth_largest(LAST - order, n_ties, total)
        assert last is not None
        kept[tied] = LAST - order >= last.bits
    return codes.take(kept.nonzero().squeeze(1))


def _itself(x: Tensor) -> Tensor:
    return x
