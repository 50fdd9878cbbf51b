"""Evaluation: how well circuits do their tasks, and how near they stay to the whole model."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impact_lightning.circuits.compact import compact
from impact_lightning.circuits.fold import Folder
from impact_lightning.circuits.gated import gating
from impact_lightning.circuits.means import Baseline
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.resampling import Resampled, donors
from impact_lightning.circuits.task_images import TaskImages
from impact_lightning.circuits.tasks import Task, judge
from impact_lightning.types import UserError

COMPACT = 0.7  # share of nodes below which cutting a circuit out pays
Filling = Tensor | Resampled  # of nodes that are off: (1 or T, n) constants, or a set for each circuit (R, 1 or T, n)


class Scores(NamedTuple):
    """How circuits did, `(R,)` float64 each but for the last two."""

    loss: Tensor  # mean over images, both sides alike
    accuracy: Tensor  # mean over sides of the share of images that are right
    margin: Tensor  # mean over images
    divergence: Tensor  # mean KL of the circuit's predictions from the model's, over all classes
    agreement: Tensor  # share of images with the model's prediction
    images: Tensor  # (R,) int64
    losses: tuple[Tensor, ...]  # of each image, R of (N,); weighed so that sides count alike: their mean is the loss


class Evaluation:
    """Runs circuits of the tasks of one split.

    Args:
        model: The frozen model.
        nodes: Its nodes.
        tasks: The tasks.
        images: Their images.
        batch_size: Images of one forward.
    """

    def __init__(
        self, model: nn.Module, nodes: Nodes, tasks: Sequence[Task], images: TaskImages, batch_size: int = 256
    ) -> None:
        self.model = model
        self.nodes = nodes
        self.tasks = tasks
        self.images = images
        self.batch_size = batch_size
        self.folder: Folder | None = None
        with suppress(UserError):  # what cannot be folded runs through gates
            self.folder = Folder(model, nodes)
        self.full = self._full()

    @torch.no_grad()
    def _full(self) -> Tensor:
        """Return the logits of the whole model for all images, `(U, C)`."""
        places = torch.arange(len(self.images.pixels))
        return torch.cat([self.model(self.images[part]) for part in places.split(self.batch_size)])

    @cached_property
    def whole(self) -> Scores:
        """How well the whole model does each task."""
        return _stacked(
            [self._judged(task, self.full[self.images.images[task].rows]) for task in range(len(self.tasks))]
        )

    def __call__(self, masks: Tensor, tasks: Sequence[int], filling: Filling) -> Scores:
        """Return how well circuits do.

        Args:
            masks: Which nodes are on, bool `(R, n)`.
            tasks: The task of each circuit, R of them.
            filling: What nodes that are off hold.
        """
        fillings = filling if isinstance(filling, Tensor) and filling.ndim == 3 else [filling] * len(masks)
        rows = zip(masks, tasks, fillings, strict=True)
        return _stacked([self._judged(task, self._logits(mask, task, own)) for mask, task, own in rows])

    @torch.no_grad()
    def _logits(self, mask: Tensor, task: int, filling: Filling) -> Tensor:
        """Return the logits of a circuit for all images of its task, `(N, C)`."""
        rows = self.images.images[task].rows
        if isinstance(filling, Resampled):
            return self._resampled(mask, task, filling)
        parts = rows.split(self.batch_size)
        if len(filling) == 1 and self.folder is not None:  # alike on all tokens: the circuit is a model of its own
            if float(mask.double().mean()) < COMPACT:
                circuit, _ = compact(self.model, self.nodes, mask, filling[0])
            else:
                circuit = self.folder.load(mask, filling[0])
            return torch.cat([circuit(self.images[part]) for part in parts])
        with gating(self.model, self.nodes) as gated:
            baseline, on = Baseline(filling.to(self.full), self.nodes), mask.to(self.full)
            return torch.cat([gated(self.images[part], on.expand(len(part), -1), baseline) for part in parts])

    def _resampled(self, mask: Tensor, task: int, filling: Resampled) -> Tensor:
        rows, targets = self.images.images[task]
        pairs = zip(rows.split(self.batch_size), rows[donors(targets, filling)].split(self.batch_size), strict=True)
        with gating(self.model, self.nodes) as gated:
            on = mask.to(self.full)
            parts = [
                gated.resampled(self.images[own], self.images[other], on.expand(len(own), -1)) for own, other in pairs
            ]
        return torch.cat(parts)

    def _judged(self, task: int, logits: Tensor) -> tuple[list[float], Tensor]:
        """Return the scores of a task in the order of `Scores`, and the weighed loss of each image."""
        places, targets = self.images.images[task]
        targets, full = targets.to(logits.device), self.full[places.to(logits.device)]
        judged = judge(self.tasks[task], logits, targets, full)
        sides = [targets == side for side in targets.unique()] if self.tasks[task].readout != "kl" else [targets >= 0]
        whole, own = full.double().log_softmax(1), logits.double().log_softmax(1)
        scores = [
            float(torch.stack([judged.loss[side].double().mean() for side in sides]).mean()),
            float(torch.stack([judged.correct[side].double().mean() for side in sides]).mean()),
            float(judged.margin.double().mean()),
            float(F.kl_div(own, whole, log_target=True, reduction="none").sum(1).mean()),
            float((logits.argmax(1) == full.argmax(1)).double().mean()),
            float(len(targets)),
        ]
        weights = sum(side.double() / side.sum() for side in sides) * (len(targets) / len(sides))
        return scores, (judged.loss.double() * weights).cpu()


def _stacked(rows: list[tuple[list[float], Tensor]]) -> Scores:
    table = torch.tensor([scores for scores, _ in rows], dtype=torch.float64).reshape(-1, 6)
    loss, accuracy, margin, divergence, agreement, n = table.unbind(1)
    return Scores(loss, accuracy, margin, divergence, agreement, n.long(), tuple(losses for _, losses in rows))
