"""Tokens of a batch that is spread over ranks."""

import torch
from torch import Tensor

from impact_lightning.ranks import all_sum, rank_and_world
from impact_lightning.types import UserError


def count_tokens(x: Tensor) -> int:
    """Return the number of rows of `(B, D)` on all ranks; every rank refuses what is not finite on any of them.

    Comparisons drop nan without a word, so this is asked before anything is selected.
    """
    n_bad = 0 if bool(torch.isfinite(x.sum())) else int((~torch.isfinite(x).all(dim=1)).sum())
    n_tokens, n_bad = all_sum(torch.tensor([len(x), n_bad], device=x.device)).tolist()
    if n_bad:
        raise UserError(f"activations: {n_bad} of {n_tokens} tokens hold nan or infinite numbers; look at their source")
    return int(n_tokens)


def token_weight(n_tokens: int) -> float:
    """Return what one token counts in a mean over all ranks' tokens, given that ranks average their gradients."""
    return rank_and_world()[1] / max(n_tokens, 1)
