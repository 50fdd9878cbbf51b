"""The order in which samples are seen: a pure function of seed, epoch and step, the same on every rank."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from impact_lightning.types import UserError

Rows = NDArray[np.int64]


@lru_cache(maxsize=2)  # one epoch is read many times, step by step
def _permutation(rows: int, seed: int, epoch: int) -> Rows:
    return np.random.default_rng([seed, epoch]).permutation(rows)


@dataclass(frozen=True)
class TrainOrder:
    """A new permutation of all rows every epoch, cut into global batches.

    Args:
        rows: Number of samples.
        batch: Samples of one step over all ranks together.
        seed: Another seed gives another order.
    """

    rows: int
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a batch that the data set cannot fill."""
        if not 0 < self.batch <= self.rows:
            raise UserError(f"batch_size {self.batch} must lie between 1 and the {self.rows} samples of the data set")

    def __len__(self) -> int:
        """Return the steps of an epoch; the tail, less than a batch, is another one each epoch."""
        return self.rows // self.batch

    def rows_at(self, epoch: int, step: int) -> Rows:
        """Return the rows of one global batch `(batch,)`."""
        return _permutation(self.rows, self.seed, epoch)[step * self.batch : (step + 1) * self.batch]


@dataclass(frozen=True)
class EvalOrder:
    """All rows once, in their own order; the last batch may be short. With a stride, every so-manieth batch of them."""

    rows: int
    batch: int
    stride: int = 1

    def __len__(self) -> int:
        """Return the number of batches over all ranks together."""
        return -(-self.rows // (self.batch * self.stride))

    def rows_at(self, step: int) -> Rows:
        """Return the rows of one batch."""
        start = step * self.stride * self.batch
        return np.arange(start, min(start + self.batch, self.rows))

    def thinned(self, at_most: int) -> "EvalOrder":
        """Return an order of at most so many batches, spread evenly: neighbours are often of one class."""
        return replace(self, stride=self.stride * -(-len(self) // at_most))
