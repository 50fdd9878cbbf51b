"""Which samples of a split are used: a part held out for validation, and a limit per class."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

LIMIT_SEED = 0  # the same images for every seed of a run, so that seeds are compared on the same images


def rank_in_class(labels: Rows, seed: int) -> Rows:
    """Return the place `(N,)` of every sample in a random order of its own class."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]  # classes one after another, shuffled inside
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)  # (C,) -> (N,)
    rank = np.empty_like(labels)
    rank[by_class] = np.arange(len(labels)) - starts
    return rank


def held_out(labels: Rows, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which samples `(N,)` are held out: the fraction of every class, at least one, but never a whole class."""
    counts = np.bincount(labels)
    n_held_out = np.minimum(np.maximum(np.rint(fraction * counts), 1), counts - 1)  # (C,)
    is_held_out: NDArray[np.bool_] = rank_in_class(labels, seed) < n_held_out[labels]
    return is_held_out


def limited(labels: Rows, limit: int | None) -> Rows:
    """Return the rows of at most `limit` samples of each class, in their own order; a larger limit keeps them all.

    Example:
        >>> limited(np.array([0, 0, 1]), limit=1)[1:]
        array([2])
    """
    if limit is None:
        return np.arange(len(labels))
    return np.flatnonzero(rank_in_class(labels, LIMIT_SEED) < limit)
