"""The threshold of inference: the one with which held-out tokens have `k` active latents on average."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from impact_lightning.ranks import all_sum
from impact_lightning.sae.batch_topk import BatchTopK
from impact_lightning.sae.order_statistic import DIGIT, digit_counts, float_bits, float_of, place_of
from impact_lightning.types import UserError


class Calibration(NamedTuple):
    """A threshold and what it was made from."""

    theta: float  # codes above it are active
    n_tokens: int  # of all ranks
    l0: float  # active latents per token on those tokens


@torch.no_grad()
def calibrate(saes: Sequence[BatchTopK], batches: Callable[[], Iterable[Sequence[Tensor]]]) -> list[Calibration]:
    """Set each threshold just below the `N · k`-th largest pre-activation of N tokens.

    It is found by counting leading bits and then, where the number must be, the next ones: exact, and the same on any
    number of ranks, however the tokens are dealt to them. The running mean of the training's cut misses `k` by more,
    and the running minimum of positive codes by a lot.

    Args:
        saes: Trained dictionaries; the thresholds are written to them.
        batches: Called once for each pass over the same tokens, for which it gives the input of each dictionary,
            `(B, D)`, as it was in training.
    """
    searches = [_Search(sae) for sae in saes]
    while any(search.result is None for search in searches):
        for inputs in batches():
            for search, x in zip(searches, inputs, strict=True):
                search.count(x)
        for search in searches:
            search.narrow()
    return [search.result for search in searches if search.result is not None]


class _Search:
    """The search for one threshold: how it begins in bits, and how many pre-activations are certainly above it."""

    def __init__(self, sae: BatchTopK) -> None:
        self.sae = sae
        self.prefix, self.above, self.wanted = 0, 0, 0
        self.shift = torch.finfo(sae.w_enc.dtype).bits - DIGIT
        self.result: Calibration | None = None
        self._begin()

    def _begin(self) -> None:
        device = self.sae.w_enc.device
        self.counts = torch.zeros(2**DIGIT, dtype=torch.int64, device=device)  # of each next digit after the prefix
        self.tokens = torch.zeros(2, dtype=torch.int64, device=device)  # all of them, and those that are not finite

    def count(self, x: Tensor) -> None:
        """Count the tokens `(B, D)` of one batch."""
        if self.result is not None:
            return
        z = self.sae.pre_activations(x)
        self.counts += digit_counts(float_bits(z[z > 0]), self.prefix, self.shift)
        self.tokens += torch.stack([self.tokens.new_tensor(len(z)), (~z.isfinite()).any(dim=1).sum()])

    def narrow(self) -> None:
        """Take the next digit from the counts of all ranks after a pass, or the threshold after the last one."""
        if self.result is not None:
            return
        n_tokens, n_bad = all_sum(self.tokens).tolist()
        if n_bad:
            raise UserError(
                f"calibration: {n_bad} of {n_tokens} tokens hold nan or infinite numbers; look at their source"
            )
        counts = all_sum(self.counts)
        if not self.wanted:
            self.wanted, n_positive = round(n_tokens * self.sae.k), int(counts.sum())
            if not self.wanted:
                raise UserError("calibration: there are no tokens to calibrate a threshold with")
            if n_positive < self.wanted:
                self._set(0.0, n_tokens, n_positive)
                return
        digit, larger, equal = place_of(counts, self.wanted - self.above)
        self.above, self.prefix = self.above + larger, self.prefix << DIGIT | digit
        if self.shift:
            self.shift -= DIGIT
            self._begin()
        else:
            self._set(float_of(self.prefix - 1, self.sae.w_enc.dtype), n_tokens, self.above + equal)

    def _set(self, theta: float, n_tokens: int, n_active: int) -> None:
        self.sae.threshold.fill_(theta)
        self.result = Calibration(theta, n_tokens, n_active / n_tokens)
