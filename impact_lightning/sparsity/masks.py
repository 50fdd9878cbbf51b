"""Masks: which weights stay, chosen from their scores with exact counts.

The lowest scores of a group are removed; of equal scores the one with the smaller index goes first.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from impact_lightning.sparsity.compare import kth_lowest
from impact_lightning.types import UserError


@dataclass(frozen=True)
class NofM:
    """N of every M consecutive inputs of a row are kept: 1:4 keeps one and removes three."""

    keep: int
    of: int

    @property
    def sparsity(self) -> float:
        """Return the share of zeros that the pattern makes."""
        return 1 - self.keep / self.of

    def __str__(self) -> str:
        """Write the pattern as `parse_scope` reads it."""
        return f"{self.keep}:{self.of}"


Scope = Literal["row", "tensor", "global"] | NofM


def parse_scope(text: str) -> Scope:
    """Read `row`, `tensor`, `global` or a pattern such as `2:4`."""
    match text:
        case "row" | "tensor" | "global":
            return text
    numbers = re.fullmatch(r"(\d+):(\d+)", text)
    if numbers is None or not 0 < int(numbers[1]) < int(numbers[2]):
        raise UserError(f"scope {text!r}: choose row, tensor, global, or N:M with 0 < N < M, of which N are kept")
    return NofM(int(numbers[1]), int(numbers[2]))


def n_zeros(sparsity: float, n: int) -> int:
    """Return `floor(sparsity * n)`, where the sparsity is the decimal number that a person has written.

    Example:
        >>> n_zeros(0.29, 100), int(0.29 * 100)
        (29, 28)
    """
    return math.floor(Fraction(repr(float(sparsity))) * n)


def keep_highest(scores: Tensor, zeros: int) -> Tensor:
    """Return which scores `(..., n)` stay when the `zeros` lowest of each last dimension are removed."""
    n = scores.shape[-1]
    if zeros == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    groups = scores.reshape(-1, n)  # (..., n) -> (G, n)
    threshold = kth_lowest(groups, zeros)  # (G, 1) the highest that may go
    kept = groups > threshold
    missing = n - zeros - kept.sum(1, keepdim=True)  # (G, 1) above 0 where several equal the threshold
    tied = missing.squeeze(1).nonzero().squeeze(1)
    if len(tied):
        equal = groups[tied] == threshold[tied]
        from_last = equal.flip(1).cumsum(1, dtype=torch.int32).flip(1)  # (G, n) counted from the end
        kept[tied] |= equal & (from_last <= missing[tied])
    return kept.view(scores.shape)


def row_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Return a mask `(out, in)` with the same number of zeros in every row."""
    return keep_highest(scores, n_zeros(sparsity, scores.shape[1]))


def tensor_mask(scores: Tensor, sparsity: float) -> Tensor:
    """Return a mask `(out, in)` whose zeros lie anywhere."""
    return keep_highest(scores.flatten(), n_zeros(sparsity, scores.numel())).view(scores.shape)


def n_of_m_mask(scores: Tensor, pattern: NofM) -> Tensor:
    """Return a mask `(out, in)` that keeps N of every M inputs of a row."""
    groups = scores.unflatten(1, (-1, pattern.of))  # (out, in) -> (out, in / M, M)
    return keep_highest(groups, pattern.of - pattern.keep).flatten(1)


def global_masks(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Return masks whose zeros lie anywhere in all tensors together."""
    together = torch.cat([part.flatten() for part in scores.values()])
    kept = keep_highest(together, n_zeros(sparsity, together.numel())).split([part.numel() for part in scores.values()])
    return {name: part.view(scores[name].shape) for name, part in zip(scores, kept, strict=True)}
