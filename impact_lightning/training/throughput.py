"""How fast training goes, and how much of it is waiting for data."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Log samples per second over all ranks, and the share of the time in which no batch was there.

    The first batches are left out: they pay for warm-up.

    Args:
        skip: Batches at the start that do not count.
    """

    def __init__(self, skip: int = 5) -> None:
        self.skip = skip
        self.samples = 0
        self.seconds = 0.0
        self.waited = 0.0
        self._seen = 0
        self._start = self._end = 0.0
        self._interrupted = False

    @property
    def per_second(self) -> float:
        """Return the rate of this rank since the warm-up; 0 before it."""
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def data_wait(self) -> float:
        """Return the share of the time between the end of a batch and the start of the next."""
        return self.waited / self.seconds if self.seconds else 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out what lies between epochs."""
        self._end = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out a validation in mid-epoch."""
        self._end = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is there: the wait ends, unless it was for a checkpoint."""
        self._start = time.perf_counter()
        if self._interrupted:
            self._end, self._interrupted = self._start, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave out the time that a checkpoint takes."""
        self._interrupted = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step ends: count it, and log when the other metrics are logged."""
        now = time.perf_counter()
        self._seen += 1
        if self._seen > self.skip:
            self.samples += len(batch[1])  # the second part of every batch has one entry a sample
            self.seconds += now - self._end
            self.waited += self._start - self._end
        self._end = now
        every = int(getattr(trainer, "log_every_n_steps"))  # noqa: B009  # set where type checkers do not see it
        if self.seconds and trainer.global_step % every == 0:
            pl_module.log_dict(
                {
                    f"train/{unit(pl_module)}_per_s": self.per_second * trainer.world_size,
                    "train/data_wait": self.data_wait,
                },
                rank_zero_only=True,
            )


def unit(module: Any) -> str:
    """Return what the samples of a module are: images, unless it says otherwise."""
    return str(getattr(module, "unit", "images"))
