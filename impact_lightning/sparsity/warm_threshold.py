"""The k-th largest of numbers that change little from call to call: exact, without ordering all of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from impact_lightning.sparsity.compare import at_least, between, count_above, kth_largest

LEAST_REACH = 1e-3  # of the threshold: half the window is never narrower


@dataclass(frozen=True)
class Cut:
    """Where k numbers part from the others.

    Args:
        threshold: The k-th largest.
        surplus: How many more than k are at least as large, because they equal the threshold.
    """

    threshold: float
    surplus: int


class WarmThreshold:
    """Finds the k-th largest inside a window around the last one.

    Numbers above the window are counted, those inside are ordered. Where the window misses, all numbers are ordered:
    what came before changes the time that a call takes, never its result.
    """

    def __init__(self) -> None:
        self._last = math.nan
        self._reach = 0.0  # half the window

    def find(self, scores: Tensor, k: int) -> Cut:
        """Return where the k largest of scores `(N,)`, 0 < k <= N, end."""
        low, high = self._last - self._reach, self._last + self._reach
        n_above, inside = count_above(scores, high), between(scores, low, high)
        if not n_above < k <= n_above + len(inside):
            n_above, inside = 0, scores
        threshold = kth_largest(inside, k - n_above)
        surplus = n_above + int(torch.count_nonzero(at_least(inside, threshold))) - k
        self._remember(threshold)
        return Cut(threshold, surplus)

    def _remember(self, threshold: float) -> None:
        if not math.isfinite(threshold):
            return
        move = abs(threshold - self._last) if math.isfinite(self._last) else 0.0
        self._reach = max(2 * move, self._reach / 2, LEAST_REACH * threshold)
        self._last = threshold
