"""The tasks of circuits as a DataModule: three disjoint sets of images of each, in memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from impact_lightning.circuits.task_images import TaskImages
from impact_lightning.circuits.tasks import Images, Task, draw, name_of
from impact_lightning.data.labels import labels_of
from impact_lightning.data.module import ImageDataModule
from impact_lightning.types import UserError


class Steps:
    """Numbers of steps without images: those are in memory, and which a circuit sees is a function of the step."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        """Return how many there are."""
        return self.n

    def __iter__(self) -> Iterator[tuple[int, tuple[int]]]:
        """Yield each with its only sample: itself."""
        yield from ((step, (step,)) for step in range(self.n))


class TaskData(LightningDataModule):
    """Images of tasks: `train` to learn masks, `select` to choose their sizes, `report` for every number that is told.

    The first two of a task are drawn from the training images without overlap, the third from the test images.

    Args:
        data: The images.
        tasks: The tasks; by default each class against the rest.
        nonsense: Add to each task a control with permuted labels.
        train_images: Images of each side of a task to learn from.
        select_images: To choose sizes on.
        report_images: To report on.
        seed: Seed of the draws.
    """

    def __init__(
        self,
        data: ImageDataModule,
        tasks: list[Task] | None = None,
        nonsense: bool = True,
        train_images: int = 512,
        select_images: int = 128,
        report_images: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("train_images", train_images),
            ("select_images", select_images),
            ("report_images", report_images),
        ):
            if value < 2:
                raise UserError(f"data.{name} must be at least 2, got {value}")
        if getattr(data, "augment", None) is not None:
            raise UserError("data.augment varies the training images; circuits learn on fixed images: set it to null")
        self.data = data
        if tasks is not None and not tasks:
            raise UserError("data.tasks is empty: leave it out to have each class against the rest")
        chosen = tasks or [Task("rest", (c,)) for c in range(data.n_classes)]
        for task in chosen:
            if bad := [c for c in (*task.classes, *task.against) if not 0 <= c < data.n_classes]:
                raise UserError(f"task {task.readout}: class {bad[0]} is none of {data.n_classes}, which count from 0")
            if chosen.count(task) > 1:
                raise UserError(f"data.tasks names {name_of(task, data.class_names)!r} twice")
        if all(task.nonsense for task in chosen):
            raise UserError("data.tasks has nothing but nonsense: name the tasks that it controls")
        controls = [replace(t, nonsense=True) for t in chosen if t.readout != "kl" and not t.nonsense]
        self.tasks = chosen + (controls if nonsense else [])
        self.sizes = {"train": train_images, "select": select_images, "report": report_images}
        self.seed = seed
        self.batch_size = 1  # a step; the progress bar counts these
        self.images: dict[str, TaskImages] = {}

    @property
    def n_classes(self) -> int:
        """Return the number of classes."""
        return self.data.n_classes

    @property
    def names(self) -> list[str]:
        """What the tasks are called."""
        return [name_of(task, self.data.class_names) for task in self.tasks]

    def setup(self, stage: str) -> None:
        """Draw and read the images."""
        if self.images:
            return
        self.data.setup(stage)
        train, test = labels_of(self.data, "train"), labels_of(self.data, "test")
        learnt = [draw(task, train, self.sizes["train"], seed=self.seed) for task in self.tasks]
        select = [self._to_select(task, train, images.rows) for task, images in zip(self.tasks, learnt, strict=True)]
        report = [draw(task, test, self.sizes["report"], seed=self.seed + 2) for task in self.tasks]
        self.images = {
            "train": TaskImages(self.data, "train", learnt, self.tasks),
            "select": TaskImages(self.data, "train", select, self.tasks),
            "report": TaskImages(self.data, "test", report, self.tasks),
        }

    def _to_select(self, task: Task, labels: Tensor, learnt: Tensor) -> Images:
        """Draw images to choose the size of a task's circuits on: none that they learn from."""
        try:
            return draw(task, labels, self.sizes["select"], seed=self.seed + 1, leave_out=learnt)
        except UserError as error:
            raise UserError(f"data.select_images: train_images leave none to choose sizes on ({error})") from None

    def general_rows(self, n: int) -> Tensor:
        """Return training images of no task in particular, for means, `(n,)`."""
        total = len(labels_of(self.data, "train"))
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed + 3))
        return order[:n].sort().values

    def protocol(self) -> dict[str, Any]:
        """Return the constants under which circuits are found."""
        return {
            **self.data.protocol(),
            **{f"{name}_images": n for name, n in self.sizes.items()},
            "task_seed": self.seed,
        }

    def fingerprint(self, name: str) -> str:
        """Return the fingerprint of the images that `train`, `select` or `report` are drawn from."""
        return self.data.fingerprint("test" if name == "report" else "train")

    def train_dataloader(self) -> Steps:
        """Return the numbers of the steps of an epoch, which sees each training image of a task about once."""
        return Steps(max(1, 2 * self.sizes["train"] // 16))

    def test_dataloader(self) -> Steps:
        """Return one step, in which everything is tested."""
        return Steps(1)
