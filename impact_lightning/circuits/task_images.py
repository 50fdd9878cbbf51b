"""The images of tasks in memory: decoded once, looked at in every step."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import ceil
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from impact_lightning.activations.image_reader import ImageReader
from impact_lightning.circuits.tasks import Images, Task
from impact_lightning.data.module import ImageDataModule, Split, normalise
from impact_lightning.types import UserError

ROOM = 8 * 2**30  # bytes of images that a run may hold


class TaskImages:
    """Images of one split, bytes as they were decoded, and those of each task among them.

    Args:
        data: The images.
        split: The split.
        drawn: The images of each task.
        tasks: The tasks, for messages.
    """

    def __init__(self, data: ImageDataModule, split: Split, drawn: Sequence[Images], tasks: Sequence[Task]) -> None:
        self.mean, self.std = data.mean, data.std
        rows = torch.cat([images.rows for images in drawn]).unique()  # (U,) in ascending order
        size = len(rows) * int(np.prod(data.image_shape))
        if size > ROOM:
            raise UserError(f"tasks draw {len(rows):,} images of {size / 2**30:.1f} GiB: take fewer tasks or images")
        self.pixels, found = _read(data, split, rows)
        place = torch.full((int(rows.max()) + 1,), -1)
        place[found] = torch.arange(len(found))
        self.images: list[Images] = []
        for task, images in zip(tasks, drawn, strict=True):
            at = place[images.rows]
            kept = Images(at[at >= 0], images.targets[at >= 0])  # damaged ones are left out
            sides = 1 if task.readout == "kl" else max(2, len(task.classes))
            if len(kept.targets.unique()) < sides:
                raise UserError(f"task {task.readout} {list(task.classes)}: a side has no image that can be read")
            self.images.append(kept)

    def __getitem__(self, places: Tensor) -> Tensor:
        """Return images by place, normalised, `(B, 3, h, w)`."""
        return normalise(self.pixels[places.to(self.pixels.device)], self.mean, self.std)

    def to(self, device: torch.device) -> "TaskImages":
        """Move the images, and return them."""
        self.pixels = self.pixels.to(device)
        return self


def _read(data: ImageDataModule, split: Split, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images of some rows, and the rows of those that can be read."""
    reader = ImageReader(data.split(split), workers=data.workers)
    batches = np.array_split(rows.numpy(), ceil(len(rows) / data.eval_batch_size))
    parts = [(batch.images, batch.row) for batch in reader.read(batches) if len(batch.row)]
    if not parts:
        raise UserError(f"none of the images of split {split} can be read; mend the data")
    images, found = (torch.cat(side) for side in zip(*parts, strict=True))
    return images, found


class Step(NamedTuple):
    """The images of one step, circuit by circuit."""

    places: Tensor  # (P, b) among the images in memory
    targets: Tensor  # (P, b)


def steps(images: Sequence[Images], b: int, seeds: Sequence[int], start: int = 0) -> Iterator[Step]:
    """Yield `b` images for each circuit, step by step without end: as many of each side, in an order of its own.

    A pure function of the seeds and the step: a circuit sees the same images whatever stands beside it, and again
    after a restart.

    Args:
        images: The images of each circuit's task.
        b: Images of each circuit in a step.
        seeds: Seed of each circuit.
        start: The first step.
    """
    step = start
    while True:
        drawn = [_of_step(one, b, seed, step) for one, seed in zip(images, seeds, strict=True)]
        yield Step(torch.stack([places for places, _ in drawn]), torch.stack([targets for _, targets in drawn]))
        step += 1


def _of_step(images: Images, b: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return places and targets of a step: each side goes through its images in one order after another."""
    sides = images.targets.unique().tolist() if len(images.targets.unique()) <= b else [None]
    counts = [b // len(sides) + (i < b % len(sides)) for i in range(len(sides))]
    chosen = []
    for side, count in zip(sides, counts, strict=True):
        of = torch.arange(len(images.rows)) if side is None else (images.targets == side).nonzero().flatten()
        wanted = range(step * count, (step + 1) * count)
        orders = {e: _order(seed, e, side or 0, len(of)) for e in {int(i) // len(of) for i in wanted}}
        chosen.append(of[[int(orders[i // len(of)][i % len(of)]) for i in wanted]])
    at = torch.cat(chosen)
    return images.rows[at], images.targets[at]


@lru_cache(maxsize=4096)  # one order serves the steps of an epoch
def _order(seed: int, epoch: int, side: int, n: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, side]).permutation(n)
