"""Checkpoints under two fixed names, `last.ckpt` and `best.ckpt`, that a kill at any moment leaves whole."""

import math
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback

from impact_lightning.files import atomic_write, link_or_copy, read_torch
from impact_lightning.training.rehearsal import is_rehearsal
from impact_lightning.types import UserError


class AtomicCheckpointIO(CheckpointIO):
    """Write beside the target, flush to the disk, rename.

    Lightning's own writer goes through the temporary folder, which need not be on the same disk: its last step is
    then a copy that a kill can cut short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; of hyper-parameters that are objects, their plain content."""
        if "hyper_parameters" in checkpoint:
            checkpoint["hyper_parameters"] = plain(checkpoint["hyper_parameters"])
        try:
            with atomic_write(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch wraps a failed write into a RuntimeError
            raise UserError(f"{path} could not be written ({error}); the former checkpoint is intact") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing but plain data is unpickled."""
        content = read_torch(Path(path), map_location)
        if Path(path).name == ".temp.ckpt":  # bare weights that Lightning's launchers pass between processes
            return content
        for key in ("state_dict", "pytorch-lightning_version"):
            if key not in content:
                raise UserError(f"{path} is no checkpoint of a run: it has no `{key}`")
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Return paths as strings and data classes as dicts, all the way down: what is read without running code."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return str(value) if isinstance(value, Path) else value


class Checkpoint(CheckpointCallback):
    """Keep `last.ckpt`, from which a run continues, and `best.ckpt` by a validation metric.

    `last.ckpt` is written after every validation, at the end, and in between by time or steps. `best.ckpt` is a hard
    link to the same bytes. A callback whose `is_unfinished` is true, as that of `WeightSparse` is while the density
    falls, keeps `best.ckpt` waiting. Lightning's ModelCheckpoint deletes the old file before it moves the `last` link,
    and numbers its files anew when a run is repeated; a kill in between loses the run.

    Args:
        dirpath: Folder of the two files.
        monitor: Validation metric that decides which checkpoint is the best; none keeps only `last.ckpt`.
        mode: Whether the metric is to be maximal or minimal.
        every_n_steps: Write after so many optimiser steps as well.
        every_n_minutes: Write after so many minutes as well.
    """

    def __init__(
        self,
        dirpath: Path,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        every_n_steps: int | None = None,
        every_n_minutes: float = 10.0,
    ) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and value <= 0:
                raise UserError(f"checkpoint.{name} must be positive, got {value}")
        self.dirpath = Path(dirpath)
        self.monitor = monitor
        self.mode = mode
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.best_score: float | None = None
        self.best_step = -1
        self._is_due = False
        self._saved_step = -1
        self._saved_time = time.monotonic()

    @property
    def last(self) -> Path:
        """Return the path of the checkpoint to continue from."""
        return self.dirpath / "last.ckpt"

    @property
    def best(self) -> Path:
        """Return the path of the best checkpoint."""
        return self.dirpath / "best.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and mend the link that a kill left behind when the best checkpoint was just written."""
        if trainer.global_step == self.best_step and trainer.is_global_zero and self.last.exists():
            link_or_copy(self.last, self.best)
        self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()
        every, accumulated = trainer.val_check_batch, trainer.accumulate_grad_batches
        if isinstance(every, int) and every != trainer.num_training_batches and every % accumulated:
            raise UserError(
                f"trainer.val_check_interval validates every {every} batches, in the middle of the {accumulated} of "
                "trainer.accumulate_grad_batches: a checkpoint there would lose gradients; choose a multiple"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when a step was made and it is time; the last batch of an epoch waits for what follows it."""
        is_last = batch_idx + 1 >= trainer.num_training_batches
        if trainer.global_step == self._saved_step:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not is_last:
            return  # gradients under way are not part of a checkpoint
        self._is_due |= self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if trainer.global_step % 8 == 0:  # the clock of rank 0 decides for all, so ask it seldom
            minutes = (time.monotonic() - self._saved_time) / 60
            self._is_due |= trainer.strategy.broadcast(minutes >= self.every_n_minutes)
        if self._is_due and not is_last:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was due at the last batch, if no validation has done it."""
        if self._is_due:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and let `best.ckpt` follow when the metric improved."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        improved = self._improved(trainer)
        self._save(trainer)
        if improved and trainer.is_global_zero and not is_rehearsal(trainer):
            link_or_copy(self.last, self.best)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what was trained since."""
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def _improved(self, trainer: Trainer) -> bool:
        if self.monitor is None:
            return False
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UserError(f"checkpoint.monitor: no metric {self.monitor!r} was logged; there are: {known}")
        if any(getattr(callback, "is_unfinished", False) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            return False  # it does not yet train what was asked for
        score = float(trainer.callback_metrics[self.monitor])
        better = self.best_score is None or (score > self.best_score if self.mode == "max" else score < self.best_score)
        if better and not math.isnan(score):
            self.best_score, self.best_step = score, trainer.global_step
            return True
        return False

    def _save(self, trainer: Trainer) -> None:
        if is_rehearsal(trainer):
            return
        self._is_due = False
        self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()
        module = trainer.lightning_module
        broken = next((name for name, p in module.named_parameters() if not torch.isfinite(p).all()), None)
        if broken:
            raise UserError(
                f"{broken} is not finite at step {trainer.global_step}: lower the learning rate; "
                f"{self.last} keeps what was saved before"
            )
        trainer.save_checkpoint(self.last)

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a restart."""
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to compare with the best so far."""
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
