"""What live and cached loaders share: a place in the order of buffers that is resumed exactly."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from impact_lightning.activations.batch import ActivationBatch
from impact_lightning.activations.order import BufferOrder
from impact_lightning.ranks import rank_and_world
from impact_lightning.types import UserError

Serve = Callable[[int], ActivationBatch]  # this rank's part of the k-th batch of a buffer


class BufferedLoader(ABC):
    """Endless training batches: buffer after buffer, of which every rank takes its stride of each global batch.

    What a buffer holds is a pure function of seed, epoch and its number: after a resume in mid-buffer it is made again.
    `docs/pitfalls.md` says why the place is kept here, with a length, and rolled over at the start of `__iter__`.

    Args:
        order: The order of the rows.
        data: What identifies the activations.
    """

    def __init__(self, order: BufferOrder, data: str) -> None:
        self.order = order
        self.data = data
        self.epoch = 0
        self.step = 0

    @abstractmethod
    def buffers(self, epoch: int, first: int) -> Iterator[Serve]:
        """Yield the buffers of an epoch from number `first` on; each is valid until the next one is asked for."""

    def plan(self) -> str:
        """Return what decides the order of the rows."""
        return repr(self.order)

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[ActivationBatch]:
        """Yield this rank's part of the remaining batches of the epoch, or of the next epoch after its end."""
        if self.step >= len(self):
            self.epoch, self.step = self.epoch + 1, 0
        _, world = rank_and_world()
        if self.order.batch % world:
            raise UserError(f"the global data.batch_size {self.order.batch} does not divide over {world} ranks")
        buffer, served = divmod(self.step, self.order.steps)
        for serve in self.buffers(self.epoch, buffer):
            for k in range(served, self.order.steps):
                self.step += 1
                yield serve(k)
            served = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the order, and what that order belongs to."""
        return {"epoch": self.epoch, "step": self.step, "order": self.plan(), "data": self.data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a checkpoint was written; another order or other activations are refused."""
        for name, now in (("order", self.plan()), ("data", self.data)):
            if state[name] != now:
                raise UserError(f"the checkpoint was written with another {name}: {state[name]}, now it is {now}")
        self.epoch, self.step = state["epoch"], state["step"]
