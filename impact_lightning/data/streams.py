"""Shards that are read from front to back: orders in which every process keeps to its own shards, and the reading.

Every epoch shuffles the shards and cuts the result into one lane for each worker of each rank. A lane is read from its
beginning to its end, so that no process reads what belongs to another, except the shard at the seam of two lanes, of
which each reads its own part.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from impact_lightning.data.order import EvalOrder, TrainOrder
from impact_lightning.data.source import Encoded
from impact_lightning.data.subset import Rows
from impact_lightning.types import UserError


@lru_cache(maxsize=2)  # one epoch is read many times, step by step
def _shuffled(lengths: tuple[int, ...], seed: int, epoch: int) -> Rows:
    """Return the rows of all shards, shard after shard in the order of the epoch."""
    ends = np.cumsum(lengths)
    shards = np.random.default_rng([seed, epoch]).permutation(len(lengths))
    return np.concatenate([np.arange(ends[shard] - lengths[shard], ends[shard]) for shard in shards])


@dataclass(frozen=True, kw_only=True)
class ShardOrder(TrainOrder):
    """Another order of the shards every epoch; inside a shard, the stored order.

    All ranks take the same number of steps, and nothing is repeated. The uneven ends of the lanes are left out: fewer
    samples than one batch for every worker, and others each epoch.

    Args:
        lengths: Samples of each shard.
        ranks: Number of ranks.
        workers: Processes that read, on each rank.
    """

    lengths: tuple[int, ...] = field(repr=False)
    ranks: int
    workers: int

    def __post_init__(self) -> None:
        """Refuse a batch that ranks or workers cannot share."""
        super().__post_init__()
        if self.batch % self.ranks:
            raise UserError(f"the global batch_size {self.batch} does not divide over {self.ranks} ranks")
        if not len(self):
            raise UserError(
                f"{self.rows} samples are less than a batch_size of {self.batch} for each of {self.workers} workers"
            )

    def __len__(self) -> int:
        """Return the steps of an epoch, the same in every epoch."""
        return self._lane // (self.batch // self.ranks) * self.workers

    @property
    def _lane(self) -> int:
        return self.rows // (self.ranks * self.workers)

    def rows_at(self, epoch: int, step: int) -> Rows:
        """Return the rows of one global batch `(batch,)`; every `ranks`-th row belongs to the same lane."""
        turn, worker = divmod(step, self.workers)  # a DataLoader hands its batches to its workers in turn
        piece = slice(turn * self.batch // self.ranks, (turn + 1) * self.batch // self.ranks)
        rows = _shuffled(self.lengths, self.seed, epoch)[: self.workers * self.ranks * self._lane]
        lanes = rows.reshape(self.workers, self.ranks, self._lane)
        return lanes[worker, :, piece].T.ravel()  # (R, batch / R) -> (batch,), rank by rank in turn


@dataclass(frozen=True)
class ShardEvalOrder(EvalOrder):
    """The batches of `EvalOrder`, visited in such an order that each lane is read from front to back.

    Args:
        lanes: Processes that read, over all ranks.
    """

    lanes: int = 1

    @cached_property
    def _visits(self) -> Rows:
        longest = -(-len(self) // self.lanes)
        visits = np.arange(self.lanes * longest).reshape(self.lanes, longest).T.ravel()  # lane by lane -> in turn
        return visits[visits < len(self)]

    def rows_at(self, step: int) -> Rows:
        """Return the rows of one batch."""
        return super().rows_at(int(self._visits[step]))


Read = Callable[[], Encoded]


class Shards(ABC):
    """A source that is read shard by shard; a sample out of turn costs reading its shard again from the beginning.

    Args:
        names: What each shard is called.
        lengths: Samples of each shard.
        class_names: Names of the classes.
        identity: What else tells these shards from others.
    """

    def __init__(self, *, names: list[str], lengths: tuple[int, ...], class_names: list[str], identity: str) -> None:
        self.names = names
        self.lengths = lengths
        self.class_names = class_names
        self.identity = identity
        self.ends = np.cumsum(lengths)
        self._samples: Iterator[Read] = iter(())
        self._next = (0, 0, -1)  # process, shard and position that come next; a forked process starts its own reading

    @abstractmethod
    def samples(self, shard: int, start: int) -> Iterator[Read]:
        """Yield what reads each sample of a shard, from a position onwards."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.ends[-1])

    def place(self, row: int) -> tuple[int, int]:
        """Return the shard of a row, and the position in it."""
        shard = int(np.searchsorted(self.ends, row, side="right"))
        return shard, row - int(self.ends[shard]) + self.lengths[shard]

    def __getitem__(self, row: int) -> Encoded:
        """Read one sample; the one after the last costs least."""
        shard, position = self.place(row)
        if self._next != (os.getpid(), shard, position):
            self._samples = self.samples(shard, position)
        self._next = (os.getpid(), shard, position + 1)
        read = next(self._samples, None)
        if read is None:
            raise UserError(
                f"{self.names[shard]}: ends before sample {position} of {self.lengths[shard]}; fetch it again"
            )
        sample = read()
        if not 0 <= sample.label < len(self.class_names):
            raise UserError(f"{self.name(row)}: label {sample.label} is none of the {len(self.class_names)} classes")
        return sample

    def name(self, row: int) -> str:
        """Return the shard and the position in it."""
        shard, position = self.place(row)
        return f"{self.names[shard]} sample {position}"

    def fingerprint(self, rows: Rows) -> str:
        """Return a hash over the lengths and sizes or labels of the shards, and the names of the classes."""
        identity = repr((self.identity, self.lengths, self.class_names))
        return hashlib.sha256(identity.encode() + rows.tobytes()).hexdigest()[:16]
