"""Random bits that are a pure function of what they are for: the same in any order and on any number of ranks."""

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]


def random_bits(seed: int, *ids: NDArray[np.int64]) -> Bits:
    """Return 64 random bits for each combination of ids, which broadcast: a generator for each would cost a call each.

    Example:
        >>> random_bits(0, np.arange(2)[:, None], np.arange(3)).shape
        (2, 3)
    """
    bits = np.full((1,) * max(part.ndim for part in ids), seed, np.uint64)
    for part in ids:
        bits = _mix(bits + np.uint64(0x9E3779B97F4A7C15) + part.astype(np.uint64))
    return bits


def _mix(x: Bits) -> Bits:
    """Return the bits well stirred: the finaliser of SplitMix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
