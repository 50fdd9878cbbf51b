"""A learner: the masks of one frozen model, a row of thresholds for each circuit, while they are learnt."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from impact_lightning.circuits.collapse import LastGood, set_back
from impact_lightning.circuits.gated import Gated, gating
from impact_lightning.circuits.learning import Learning
from impact_lightning.circuits.masks import START, noise, relaxed
from impact_lightning.circuits.means import Baseline, Means
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.resampling import donors_of_step
from impact_lightning.circuits.size import Prices
from impact_lightning.circuits.task_images import Step, TaskImages, steps
from impact_lightning.circuits.tasks import Task, judge
from impact_lightning.ranks import all_sum, rank_and_world
from impact_lightning.types import UserError

SPREAD = 0.01  # of thresholds at the start


class Circuit(NamedTuple):
    """Which circuit a row of thresholds is of."""

    task: int
    seed: int


class Goal(NamedTuple):
    """Losses of each circuit's task, `(P,)`."""

    target: Tensor
    full: Tensor  # of the whole model
    empty: Tensor  # of constants alone


class Learner(nn.Module):
    """Masks over the nodes of one model.

    Args:
        name: What the model is called.
        model: The model, frozen, in evaluation mode.
        nodes: Its nodes.
        weights: Fingerprint of its weights.
        circuits: The circuits to learn.
        tasks: The tasks that they are of.
        how: How masks are learnt.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        nodes: Nodes,
        weights: str,
        circuits: Sequence[Circuit],
        tasks: Sequence[Task],
        how: Learning,
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.nodes = nodes
        self.weights = weights
        self.circuits = list(circuits)
        self.tasks = list(tasks)
        self.how = how
        drawn = [torch.randn(nodes.n_switches, generator=torch.Generator().manual_seed(c.seed)) for c in circuits]
        self.thresholds = nn.Parameter(START[how.mask] + SPREAD * torch.stack(drawn))  # (P, n_switches)
        self.prices = Prices(len(circuits), how.penalty)
        self.good = LastGood(self.thresholds.shape)
        if how.ablation == "learned":
            self.shifts = nn.Parameter(torch.zeros(len(circuits), nodes.n))  # of constants, in standard deviations
        self._gates = ExitStack()
        self._losses: Tensor
        self._of_losses: Tensor

    def scores(self) -> Tensor:
        """Return what switches are ranked by `(P, n_switches)`; where the last step was lost, as before."""
        lost = (self.good.is_known & (self.good.lost > 0))[:, None]
        return torch.where(lost, self.good.thresholds, self.thresholds.detach()).cpu()

    def constants(self, means: Means) -> Tensor:
        """Return what replaces nodes, `(1 or T, n)`, or for each circuit where constants are learnt `(P, 1, n)`."""
        device = self.thresholds.device
        if self.how.ablation == "learned":
            shift = self.shifts.detach().double() * means.deviations().to(device)
            return means.constants("mean").to(device) + shift[:, None]
        return means.constants(self.how.constant).to(device)

    # -------------------------------------------------------------------------------------------------- learning

    def start(self, means: Means, goal: Goal, images: TaskImages, batches: int) -> None:
        """Open the gates.

        Args:
            means: Of the nodes.
            goal: The losses to reach.
            images: The images to learn from.
            batches: How many batches were learnt from before.
        """
        device = self.thresholds.device
        self.goal = Goal(*(part.to(device) for part in goal))
        self.images = images
        of_circuits = [images.images[circuit.task] for circuit in self.circuits]
        seeds = [circuit.seed for circuit in self.circuits]
        self.steps: Iterator[Step] = steps(of_circuits, self.how.batch, seeds, start=batches)
        self.middle = means.constants(self.how.constant).to(device, self.thresholds.dtype)
        self.deviations = means.deviations().to(device, self.thresholds.dtype)
        self._gates = ExitStack()
        self.gated: Gated = self._gates.enter_context(gating(self.model, self.nodes))

    def stop(self) -> None:
        """Take the gates out."""
        self._gates.close()

    def loss(self, step: int, progress: float) -> Tensor:
        """Return the losses and the prices of all circuits, added up: none has part in the gradient of another."""
        rank, world = rank_and_world()
        device = self.thresholds.device
        drawn = next(self.steps)
        donors = donors_of_step(drawn.places, step)
        places, targets, donors = (part[:, rank::world].to(device) for part in (*drawn, donors))  # (P, b)
        uniform = None
        if self.how.mask == "hard_concrete":
            seeds = [circuit.seed for circuit in self.circuits]
            uniform = noise(seeds, self.nodes.n_switches, step).to(device)
        switches, sizes = relaxed(self.thresholds, self.how.mask, self.how.temperature, progress, uniform)
        logits = self._logits(self.nodes.expand(switches), places, donors).view(*places.shape, -1)  # (P, b, C)
        # ranks may have unlike shares of an odd step, and their gradients are averaged: not the mean of each
        losses = self._judged(logits, targets, self._whole(places)) * (world / self.how.batch)
        if not losses.isfinite().all():
            raise UserError(f"{self.name}: the loss of a circuit is not finite at step {step}: lower model.learning.lr")
        self._losses = all_sum(losses.detach()) / world
        self._of_losses = self.thresholds.detach().clone()  # those that the losses are of: a step may ruin them
        return (losses + self.prices().to(losses.dtype) * sizes.sum(1)).sum()

    def _logits(self, masks: Tensor, places: Tensor, donors: Tensor) -> Tensor:
        """Return the logits of all circuits `(P b, C)` for masks `(P, n)`, images `(P, b)` and others `(P, b)`."""
        of = torch.arange(len(masks), device=masks.device).repeat_interleave(places.shape[1])  # (P b,)
        images = self.images[places.flatten()]
        if self.how.ablation == "resample":
            return self.gated.resampled(images, self.images[donors.flatten()], masks[of])
        constants = self.middle
        if self.how.ablation == "learned":
            constants = (constants + self.shifts * self.deviations)[of][:, None]  # (P b, 1, n)
        return self.gated(images, masks[of], Baseline(constants, self.nodes))

    @torch.no_grad()
    def _whole(self, places: Tensor) -> Tensor:
        """Return the logits of the whole model `(P, b, C)`, where a task compares with them; else of no image."""
        images = self.images[places.flatten()]
        if all(task.readout != "kl" for task in self.tasks):
            return images.new_empty(*places.shape, 1)
        logits: Tensor = self.model(images)
        return logits.view(*places.shape, -1)

    def _judged(self, logits: Tensor, targets: Tensor, full: Tensor) -> Tensor:
        """Return the sum of the losses of each circuit `(P,)` from logits `(P, b, C)`."""
        tasks = [self.tasks[circuit.task] for circuit in self.circuits]
        parts = zip(tasks, logits, targets, full, strict=True)
        return torch.stack([judge(task, *part).loss.sum() for task, *part in parts])

    def clip(self) -> None:
        """Clip the root mean square of each circuit's gradient at 1."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(parameter.grad.square().mean(1, keepdim=True).sqrt().clamp_min(1.0))

    @torch.no_grad()
    def after_step(self, progress: float, optimizer: torch.optim.Optimizer) -> None:
        """Keep thresholds where the straight-through gradient lives, move prices, and set back what collapsed."""
        if self.how.mask == "heaviside":
            self.thresholds.clamp_(-1.0, 1.0)
        goal, prices = self.goal, self.prices
        prices.move(self._losses, goal.target, goal.full, progress=progress)
        if self.how.penalty is not None:
            return  # at a fixed price there is no loss that has to be kept
        self.good.keep(self._of_losses, (self._losses <= goal.target) & (prices.mean_loss <= goal.target))
        rows = self.good.collapsed(self._losses, goal.target, goal.empty)
        if rows.any():
            set_back(self.thresholds, self.good, rows, optimizer)
            prices.halve(rows)

    def progress(self) -> tuple[float, float]:
        """Return the mean loss of the last step, and the share of switches that are on."""
        return float(self._losses.mean()), float((self.thresholds >= 0).double().mean())
