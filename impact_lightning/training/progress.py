"""The progress bar: images per second, and the time that is left of the whole run."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.text import Text

from impact_lightning.training.throughput import unit

Batch = TypeVar("Batch")


class _Rate(ProgressColumn):
    """Images per second of this bar, over all ranks."""

    def __init__(self, bar: "Progress") -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Text:
        batches = task.finished_speed or task.speed or 0.0
        return Text(f"{batches * self.bar.samples_per_batch(task.description):,.0f} {self.bar.unit}/s")


class _TimeLeft(ProgressColumn):
    """The time that is left: of the whole fit while training, else of this pass."""

    max_refresh = 1.0

    def __init__(self, bar: "Progress") -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Text:
        left = self.bar.batches_left(task)
        if not task.speed or left is None:
            return Text("–:––:–– left")
        return Text(f"{timedelta(seconds=round(left / task.speed))} left")


class Progress(RichProgressBar):
    """One line a pass: epoch, bar, images/s, time left, loss."""

    def __init__(self) -> None:
        super().__init__(leave=False)

    def track(self, batches: Iterable[Batch], total: int, what: str) -> Iterator[Batch]:
        """Yield batches that a module reads by itself, with a line of their own."""
        if self.progress is None or not self.is_enabled:
            yield from batches
            return
        task = self.progress.add_task(what, total=total)
        for batch in batches:
            yield batch
            self.progress.advance(task)
        self.progress.update(task, visible=False)

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Return the columns of a line."""
        return [
            TextColumn("[progress.description]{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            _Rate(self),
            _TimeLeft(self),
        ]

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, int | str | float | dict[str, float]]:
        """Return the loss and the accuracy: what fits at the end of a line."""
        metrics = super().get_metrics(*args, **kwargs)
        return {name.removeprefix("train/"): metrics[name] for name in ("train/loss", "val/top1") if name in metrics}

    @property
    def unit(self) -> str:
        """What a sample is."""
        return unit(self.trainer.lightning_module)

    def samples_per_batch(self, description: str) -> int:
        """Return the samples of one batch over all ranks."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if description.startswith("Epoch"):
            return int(getattr(data, "batch_size", 1))
        return int(getattr(data, "eval_batch_size", 1)) * int(self.trainer.world_size)

    def batches_left(self, task: Task) -> float | None:
        """Return the batches until the end of the fit, or of the pass."""
        if task.total is None:
            return None
        left = task.total - task.completed
        if task.description.startswith("Epoch"):
            trainer = self.trainer
            if trainer.max_epochs is not None and trainer.max_epochs > 0:
                return left + max(0, trainer.max_epochs - trainer.current_epoch - 1) * task.total
            if trainer.max_steps > 0:
                return float(trainer.max_steps - trainer.global_step)
        return left
