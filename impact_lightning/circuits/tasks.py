"""Tasks: what a circuit has to be enough for: images, and a number that is read off the logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.types import UserError

Readout = Literal["rest", "pair", "among", "kl"]


@dataclass(frozen=True)
class Task:
    """A task.

    `rest` tells one class from all others: `s = z_c - logsumexp z_others`, whose sigmoid is the probability of the
    class. `pair` tells one class from another: `s = z_a - z_b`. Both have the loss `softplus(-s)` on images of the
    class, `softplus(s)` on the others, both halves alike. `among` tells several classes apart by cross-entropy over
    their logits, and `kl` is the divergence of all predictions from those of the whole model.

    Args:
        readout: What is read off the logits.
        classes: The classes by number: one of `rest`, two of `pair`, several of `among`, none of `kl`.
        against: Classes that the contrast images of `rest` are drawn from, such as its siblings; all others by default.
        nonsense: A control: the labels are permuted among the images, so that there is nothing to find.
    """

    readout: Readout
    classes: tuple[int, ...] = ()
    against: tuple[int, ...] = ()
    nonsense: bool = False

    def __post_init__(self) -> None:
        """Refuse a task that asks nothing."""
        n = len(self.classes)
        fits = {"rest": n == 1, "pair": n == 2, "among": n >= 2, "kl": n == 0}[self.readout]
        if not fits or len(set(self.classes)) != n:
            wanted = {"rest": "one class", "pair": "two classes", "among": "two classes or more", "kl": "no class"}
            raise UserError(f"task {self.readout} takes {wanted[self.readout]}, got {list(self.classes)}")
        if self.against and (self.readout != "rest" or self.classes[0] in self.against):
            raise UserError(
                f"task {self.readout} of {list(self.classes)}: `against` is for other classes, and for rest"
            )
        if self.nonsense and self.readout == "kl":
            raise UserError("task kl has no labels that could be nonsense")


class Images(NamedTuple):
    """The images of a task."""

    rows: Tensor  # (N,) int64, in the data
    targets: Tensor  # (N,) int64: 1 the class and 0 others; of `among` the place of the class; of `kl` the label


def draw(task: Task, labels: Tensor, n: int, *, seed: int, leave_out: Tensor | None = None) -> Images:
    """Return the images of a task: `n` of its class and `n` of the contrast, or `2 n` of its classes in equal parts.

    Args:
        task: The task.
        labels: Labels by row `(N,)`.
        n: Images of each half; fewer where the data has fewer, both halves alike.
        seed: Seed of the draw.
        leave_out: Rows that are not drawn, as those of another split.
    """
    free = torch.ones(len(labels), dtype=torch.bool)
    if leave_out is not None:
        free[leave_out] = False
    generator = torch.Generator().manual_seed(seed)

    def some(of: Tensor, n: int) -> Tensor:
        rows = (of & free).nonzero().flatten()
        return rows[torch.randperm(len(rows), generator=generator)[:n]]

    if task.readout == "kl":
        rows = some(torch.ones_like(free), 2 * n)
        targets = labels[rows]
        if not len(rows):
            raise UserError("task kl: there are no images")
    else:
        parts = [
            some(of, n if len(task.classes) < 3 else -(-2 * n // len(task.classes))) for of in _groups(task, labels)
        ]
        k = min(map(len, parts))
        if k == 0:
            raise UserError(f"task {task.readout} of classes {list(task.classes)}: one of its sides has no images")
        rows = torch.cat([part[:k] for part in parts])
        targets = torch.arange(len(parts)).repeat_interleave(k)
        if task.readout != "among":
            targets = 1 - targets  # the class comes first
    if task.nonsense:
        targets = targets[torch.randperm(len(targets), generator=generator)]
    return Images(rows, targets)


def _groups(task: Task, labels: Tensor) -> list[Tensor]:
    """Return which images belong to each side."""
    if task.readout == "rest":
        own = labels == task.classes[0]
        return [own, torch.isin(labels, torch.tensor(task.against)) if task.against else ~own]
    return [labels == c for c in task.classes]


class Judged(NamedTuple):
    """How a circuit did on images, `(B,)` each."""

    loss: Tensor
    correct: Tensor  # bool
    margin: Tensor  # how far the right side is ahead; of `kl` minus the divergence


def judge(task: Task, logits: Tensor, targets: Tensor, full: Tensor) -> Judged:
    """Return the loss of each image in the logits' precision, at least float32.

    Args:
        task: The task.
        logits: Of the circuit `(B, C)`.
        targets: What is right `(B,)`.
        full: Logits of the whole model `(B, C)`.
    """
    z, whole = (
        logits.float() if logits.itemsize < 4 else logits,
        full.to(torch.promote_types(full.dtype, torch.float32)),
    )
    if task.readout == "kl":
        loss = F.kl_div(z.log_softmax(1), whole.log_softmax(1), log_target=True, reduction="none").sum(1)
        return Judged(loss, z.argmax(1) == whole.argmax(1), -loss)
    if task.readout == "among":
        z = z[:, list(task.classes)]
        own = z.gather(1, targets[:, None])
        others = z.scatter(1, targets[:, None], -torch.inf).amax(1)
        margin = own.squeeze(1) - others
        return Judged(F.cross_entropy(z, targets, reduction="none"), margin > 0, margin)
    score = _score(task, z)
    margin = torch.where(targets == 1, score, -score)
    return Judged(F.softplus(-margin), margin > 0, margin)


def _score(task: Task, z: Tensor) -> Tensor:
    """Return by how much the class is ahead, `(B,)`."""
    own = z[:, task.classes[0]]
    if task.readout == "pair":
        return own - z[:, task.classes[1]]
    others = z.clone()
    others[:, task.classes[0]] = -torch.inf
    return own - others.logsumexp(1)


def coin(task: Task) -> float:
    """Return the loss of who knows nothing and says so; of `kl` there is no such loss."""
    return {"rest": math.log(2), "pair": math.log(2), "among": math.log(max(1, len(task.classes))), "kl": math.inf}[
        task.readout
    ]


def name_of(task: Task, class_names: Sequence[str]) -> str:
    """Return what a person calls a task."""
    named = [class_names[c] for c in task.classes]
    others = " or ".join(class_names[c] for c in task.against)
    text = {
        "rest": f"{named[0]} against {others}" if others else f"{named[0]} or not" if named else "",
        "pair": " or ".join(named),
        "among": "among " + ", ".join(named),
        "kl": "all predictions",
    }
    return text[task.readout] + (" (nonsense)" if task.nonsense else "")
