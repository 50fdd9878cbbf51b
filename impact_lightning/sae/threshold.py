"""The threshold of inference: the one with which held-out tokens have `k` active latents on average."""

from collections.abc import Callable, Iterable
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
def calibrate(sae: BatchTopK, batches: Callable[[], Iterable[Tensor]]) -> Calibration:
    """Set the threshold just below the `N · k`-th largest pre-activation of N tokens.

    It is found by counting leading bits and then, where the number must be, the next ones: exact, and the same on any
    number of ranks, however the tokens are dealt to them. The running mean of the training's cut misses `k` by more,
    and the running minimum of positive codes by a lot.

    Args:
        sae: A trained dictionary; the threshold is written to it.
        batches: Called once for each pass over the same tokens `(B, D)`, as the dictionary saw them in training.
    """
    dtype = sae.w_enc.dtype
    prefix, above, equal, n_tokens, n_positive, wanted = 0, 0, 0, 0, 0, 0
    for shift in range(torch.finfo(dtype).bits - DIGIT, -1, -DIGIT):
        counts, n_tokens = _count(sae, batches(), prefix, shift)
        if not wanted:
            wanted, n_positive = round(n_tokens * sae.k), int(counts.sum())
            if not wanted:
                raise UserError("calibration: there are no tokens to calibrate a threshold with")
            if n_positive < wanted:
                return _set(sae, 0.0, n_tokens, n_positive)
        digit, larger, equal = place_of(counts, wanted - above)
        above, prefix = above + larger, prefix << DIGIT | digit
    return _set(sae, float_of(prefix - 1, dtype), n_tokens, above + equal)


def _count(sae: BatchTopK, batches: Iterable[Tensor], prefix: int, shift: int) -> tuple[Tensor, int]:
    """Return how often each next digit follows `prefix`, and the number of tokens, of all ranks."""
    counts = torch.zeros(2**DIGIT, dtype=torch.int64, device=sae.w_enc.device)
    tokens = torch.zeros(2, dtype=torch.int64, device=sae.w_enc.device)  # all of them, and those that are not finite
    for x in batches:
        z = sae.pre_activations(x)
        counts += digit_counts(float_bits(z[z > 0]), prefix, shift)
        tokens += torch.stack([tokens.new_tensor(len(z)), (~z.isfinite()).any(dim=1).sum()])
    n_tokens, n_bad = all_sum(tokens).tolist()
    if n_bad:
        raise UserError(f"calibration: {n_bad} of {n_tokens} tokens hold nan or infinite numbers; look at their source")
    return all_sum(counts), n_tokens


def _set(sae: BatchTopK, theta: float, n_tokens: int, n_active: int) -> Calibration:
    sae.threshold.fill_(theta)
    return Calibration(theta, n_tokens, n_active / n_tokens)
