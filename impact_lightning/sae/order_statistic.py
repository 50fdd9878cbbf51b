"""The n-th largest of numbers that are spread over ranks, found by counting 16-bit digits."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

AllSum = Callable[[Tensor], Tensor]
DIGIT = 16


class Cut(NamedTuple):
    """The n-th largest number, and what is needed to keep exactly n of them."""

    bits: int
    n_above: int  # larger ones, of all ranks
    n_equal: int  # of all ranks, itself included
    n_found: int  # all numbers, of all ranks


def nth_largest(bits: Tensor, n: int, all_sum: AllSum) -> Cut | None:
    """Return the n-th largest of all ranks' `bits`, or None when they are fewer than n, or n is 0.

    Fixed shapes and integer sums: exact, and the same on any number of ranks.

    Args:
        bits: Non-negative integers `(M,)`; the bits of positive floats order like the floats.
        n: Which one, from 1 for the largest.
        all_sum: Sums a tensor over the ranks that take part.
    """
    prefix, n_above, n_equal, n_found = 0, 0, 0, 0
    for shift in range(bits.element_size() * 8 - DIGIT, -1, -DIGIT):
        counts = all_sum(digit_counts(bits, prefix, shift))
        n_found = n_found or int(counts.sum())
        if n_found < n or n < 1:
            return None
        digit, larger, n_equal = place_of(counts, n - n_above)
        n_above, prefix = n_above + larger, prefix << DIGIT | digit
    return Cut(prefix, n_above, n_equal, n_found)


def digit_counts(bits: Tensor, prefix: int, shift: int) -> Tensor:
    """Return how often each value of the digit at `shift` occurs in numbers whose higher bits are `prefix`."""
    if shift + DIGIT < bits.element_size() * 8:  # else there are no higher bits
        bits = bits[bits >> (shift + DIGIT) == prefix]
    return torch.bincount((bits >> shift).bitwise_and_(2**DIGIT - 1), minlength=2**DIGIT)


def place_of(counts: Tensor, n: int) -> tuple[int, int, int]:
    """Return the digit of the n-th largest number, how many have a larger one, and how many have the same."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, n))
    same = int(counts[-1 - place])
    return len(counts) - 1 - place, int(from_top[place]) - same, same


def float_bits(positive: Tensor) -> Tensor:
    """Return the bits of positive float32 or float64 numbers as integers of the same order."""
    return positive.view(torch.int64 if positive.dtype == torch.float64 else torch.int32)


def float_of(bits: int, dtype: torch.dtype) -> float:
    """Return the number that has these bits."""
    if dtype == torch.float64:
        return float(torch.tensor(bits, dtype=torch.int64).view(torch.float64))
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
