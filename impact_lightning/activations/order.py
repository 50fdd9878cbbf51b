"""The order of rows that pass through shuffled buffers: a pure function of seed, epoch and step."""

from dataclasses import dataclass

import numpy as np

from impact_lightning.data.order import Rows
from impact_lightning.types import UserError


@dataclass(frozen=True)
class BufferOrder:
    """Every buffer is permuted and cut into global batches.

    Args:
        rows: Rows of one buffer.
        n_buffers: Buffers of one epoch.
        batch: Rows of one step over all ranks together.
        seed: Another seed gives another order.
    """

    rows: int
    n_buffers: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse a batch that a buffer cannot fill."""
        if not 0 < self.batch <= self.rows:
            raise UserError(f"data.batch_size {self.batch} must lie between 1 and the {self.rows} rows of a buffer")

    @property
    def steps(self) -> int:
        """Return the steps that one buffer serves; less than a batch of it, drawn at random, is left out."""
        return self.rows // self.batch

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return self.n_buffers * self.steps

    def served(self, epoch: int, buffer: int) -> Rows:
        """Return which rows of a buffer are served, step by step `(steps, batch)`."""
        order = np.random.default_rng([self.seed, epoch, buffer]).permutation(self.rows)
        return order[: self.steps * self.batch].reshape(self.steps, self.batch)
