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

EXCESS = 0.25  # log of the candidates wanted per entry kept: fewer cost less to sort out, and fail more often
LOWER = (1.0, 0.9, 0.75, 0.0)  # floors to try, relative to the first
SAMPLE = 32  # rows from which the first floor is guessed
LAST = 2**62  # beyond every position in a batch


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
    slack: Tensor  # () float64: log of the candidates wanted per entry of M

    def __init__(self, screen: ScreenName = "fp32", scope: Scope = "global") -> None:
        super().__init__()
        self.screen = make_screen(screen)
        self.scope = scope
        self.register_buffer("floor", torch.zeros((), dtype=torch.float64))
        self.register_buffer("gap", torch.tensor(0.04, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, x: Tensor, w_enc: Tensor, b_enc: Tensor, k: float) -> Selection:
        """Select among the entries of `x @ w_enc.T + b_enc`.

        Args:
            x: Centred inputs `(B, D)` of this rank.
            w_enc: Encoder `(F, D)`.
            b_enc: Encoder bias `(F,)`.
            k: Mean number of active latents per token; need not be whole.
        """
        total: AllSum = all_sum if self.scope == "global" else _itself
        n_tokens = _count_tokens(x, total)
        m = round(n_tokens * k)
        codes, cut = self._search(x, w_enc, b_enc, k, m, total)
        if cut is None:
            return Selection(codes, 0.0, n_tokens)
        kept = _keep(codes, cut, m - cut.n_above, len(w_enc), total)
        return Selection(kept, float_of(cut.bits, x.dtype), n_tokens)

    def _search(
        self, x: Tensor, w_enc: Tensor, b_enc: Tensor, k: float, m: int, total: AllSum
    ) -> tuple[Codes, Cut | None]:
        """Return candidates and the cut among them; lower the floor until it is below the cut."""
        first = float(self.floor) or _guess(x, w_enc, b_enc, k, total)
        for floor in dict.fromkeys(first * share for share in LOWER):
            codes = self.screen.above(x, w_enc, b_enc, floor)
            cut = nth_largest(float_bits(codes.values), m, total)
            if cut:
                self._aim(float_of(cut.bits, x.dtype), math.log(cut.n_found / m))
                return codes, cut
            self.gap.mul_(1.5)
        self.floor.zero_()
        return codes, None

    def _aim(self, cut: float, excess: float) -> None:
        """Put the next floor a little below the cut.

        The gap grows at once after a batch with few candidates and shrinks slowly after one with many, so that drift
        and noise of the cut widen it by themselves.
        """
        change = min(max(0.5 * (1 - excess / EXCESS), -0.03), 0.5)
        self.gap.mul_(1 + change).clamp_(max=0.5)
        self.floor.copy_(cut * (1 - self.gap))


def _count_tokens(x: Tensor, total: AllSum) -> int:
    """Return the number of rows of all ranks; every rank refuses what is not finite on any of them."""
    n_bad = 0 if bool(torch.isfinite(x.sum())) else int((~torch.isfinite(x).all(dim=1)).sum())
    n_tokens, n_bad = total(torch.tensor([len(x), n_bad], device=x.device)).tolist()
    if n_bad:
        raise UserError(f"activations: {n_bad} of {n_tokens} tokens hold nan or infinite numbers; look at their source")
    return n_tokens


def _guess(x: Tensor, w_enc: Tensor, b_enc: Tensor, k: float, total: AllSum) -> float:
    """Return a floor from a few rows of the batch, the same on every rank."""
    sample = x[:: max(len(x) // SAMPLE, 1)]
    z = torch.addmm(b_enc, sample, w_enc.T).view(-1)
    wanted = min(round(2 * k * len(sample)), z.numel())
    last = float(z.kthvalue(z.numel() - wanted + 1).values) if wanted else 0.0
    summed, n_ranks = total(torch.tensor([last, 1.0], dtype=torch.float64, device=x.device)).tolist()
    return max(summed / n_ranks, 0.0)


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
    return codes.keep(kept.nonzero().squeeze(1))


def _itself(x: Tensor) -> Tensor:
    return x
