"""Loaders: batches in a planned order, decoded by worker processes, resumed exactly in mid-epoch."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader

from impact_lightning.data.order import EvalOrder, TrainOrder
from impact_lightning.ranks import rank_and_world
from impact_lightning.types import ImageBatch, Key, UserError

log = logging.getLogger(__name__)


class Fetched(NamedTuple):
    """One batch as a data set returns it."""

    batch: ImageBatch
    damaged: tuple[str, ...] = ()  # names of samples that could not be read and were left out


class RandomAccess(Protocol):
    """A data set that is asked for whole batches, any samples in any order."""

    @property
    def fingerprint(self) -> str:
        """Return what identifies the samples, not their order."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitems__(self, keys: list[Key]) -> Fetched:
        """Return the samples of one batch."""
        ...


class _Batches:
    """A batch sampler: the keys of this rank's batches, from the step where the epoch is (re)started."""

    def __init__(self) -> None:
        self.keys: Iterator[list[Key]] = iter(())

    def __iter__(self) -> Iterator[list[Key]]:
        return self.keys


def _as_is(fetched: Fetched | str) -> Fetched | str:  # module level: worker processes may have to pickle it
    return fetched


class _Asked:
    """Asks the data set; a `UserError` leaves a worker process as words, or torch would bury it in a traceback."""

    def __init__(self, data: RandomAccess) -> None:
        self.data = data

    def __getitems__(self, keys: list[Key]) -> Fetched | str:
        """Return one batch; torch's DataLoader asks for it under this name."""
        try:
            return self.data.__getitems__(keys)
        except UserError as error:
            return str(error)


class _Loader:
    """What training and evaluation share: a DataLoader over keys, and a list of the damaged samples it met."""

    def __init__(self, data: RandomAccess, *, workers: int) -> None:
        self.data = data
        self.damaged: set[str] = set()
        self._batches = _Batches()
        self._loader: DataLoader[Fetched | str] = DataLoader(
            _Asked(data),  # type: ignore[arg-type]  # torch wants a Dataset, it only calls __getitems__
            batch_sampler=self._batches,
            collate_fn=_as_is,  # type: ignore[arg-type]  # torch thinks of lists of samples
            generator=torch.Generator(),  # or every epoch would draw from the global one
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
        )

    def _load(self, keys: Iterator[list[Key]]) -> Iterator[ImageBatch]:
        self._batches.keys = keys
        for fetched in self._loader:
            if isinstance(fetched, str):
                raise UserError(fetched)
            batch, damaged = fetched
            for name in damaged:
                if name not in self.damaged:
                    log.warning("left out, cannot be read: %s", name)
                    self.damaged.add(name)
            yield batch


class TrainLoader(_Loader):
    """Endless training batches: every rank takes its stride of each global batch.

    Lightning restores the loader's state in mid-epoch because it has a length, rolls the epoch over at the start of
    `__iter__` (nothing after the last `yield` ever runs) and keeps a state that is the same on every rank.
    """

    def __init__(self, data: RandomAccess, order: TrainOrder, *, workers: int = 0) -> None:
        super().__init__(data, workers=workers)
        self.order = order
        self.epoch = 0
        self.step = 0

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[ImageBatch]:
        """Yield this rank's part of the remaining batches of the epoch, or of the next epoch after its end."""
        if self.step >= len(self):
            self.epoch, self.step = self.epoch + 1, 0
        rank, world = rank_and_world()
        if self.order.batch % world:
            raise UserError(f"the global batch_size {self.order.batch} does not divide over {world} ranks")
        epoch = self.epoch
        keys = (
            [Key(epoch, int(row)) for row in self.order.rows_at(epoch, step)[rank::world]]
            for step in range(self.step, len(self))
        )
        for batch in self._load(keys):
            if not len(batch.labels):  # leaving the step out would make this rank fall behind the others
                raise UserError(f"step {self.step} of epoch {epoch}: none of its images can be read; mend the data")
            self.step += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the order, and what that order belongs to."""
        return {"epoch": self.epoch, "step": self.step, "order": repr(self.order), "data": self.data.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a checkpoint was written; another order or other data are refused."""
        for name, now in (("order", repr(self.order)), ("data", self.data.fingerprint)):
            if state[name] != now:
                raise UserError(f"the checkpoint was written with another {name}: {state[name]}, now it is {now}")
        self.epoch, self.step = state["epoch"], state["step"]


class EvalLoader(_Loader):
    """Every sample exactly once: whole batches are dealt to the ranks in turn.

    A sample meets the same neighbours on any number of ranks, so that its result is the same to the last bit.
    """

    def __init__(self, data: RandomAccess, order: EvalOrder, *, workers: int = 0) -> None:
        super().__init__(data, workers=workers)
        self.order = order

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        return len(self._steps())

    def _steps(self) -> list[int | None]:
        """Return the numbers of this rank's batches; None, an empty batch, where there are more ranks than batches.

        Lightning refuses a rank that has no batch at all.
        """
        rank, world = rank_and_world()
        return [*range(rank, len(self.order), world)] or [None]

    def __iter__(self) -> Iterator[ImageBatch]:
        """Yield this rank's batches; one may be empty, also where all of its images are damaged."""
        yield from self._load(
            [] if step is None else [Key(0, int(row)) for row in self.order.rows_at(step)] for step in self._steps()
        )
