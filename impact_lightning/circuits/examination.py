"""Examination: everything that a test says of the circuits of one model, and of those that control them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from impact_lightning.circuits.evaluation import Evaluation, Filling
from impact_lightning.circuits.findings import ModelCircuits
from impact_lightning.circuits.learner import Goal, Learner
from impact_lightning.circuits.means import CONSTANTS, Means
from impact_lightning.circuits.overlap import of_seeds, of_tasks, overlap
from impact_lightning.circuits.rankings import attributions, magnitudes
from impact_lightning.circuits.resampling import Donor, Resampled
from impact_lightning.circuits.size import Target
from impact_lightning.circuits.task_data import TaskData
from impact_lightning.circuits.tasks import Task, coin
from impact_lightning.circuits.validation import Validated, Validator, at_size, of_circuits
from impact_lightning.circuits.verdict import Control, verdict
from impact_lightning.ranks import all_in_turns, rank_and_world
from impact_lightning.types import UserError


def filling_of(learner: Learner, means: Means, seed: int) -> Filling:
    """Return what nodes that are off hold in the circuits of a model: constants, or values of other images."""
    return Resampled("any", seed) if learner.how.ablation == "resample" else learner.constants(means)


def goals(learners: Sequence[Learner], means: Sequence[Means], data: TaskData, target: Target, seed: int) -> list[Goal]:
    """Return the losses of each model's circuits: of several models, each task has the largest target of theirs.

    A constant answer may be worse than a coin's: the loss of the empty circuit is at most that.

    Those who control others have the goals of what they control: nonsense tasks that of the task that they are made
    of, models with permuted weights that of the model.

    Args:
        learners: The models that are no controls.
        means: Of each.
        data: The tasks.
        target: Which loss to reach.
        seed: Seed of resampling.
    """
    n = len(data.tasks)
    of = [real(task, data.tasks) for task in range(n)]  # the task whose target a task has
    found = []
    for learner, own in zip(learners, means, strict=True):
        select = Evaluation(learner.model, learner.nodes, data.tasks, data.images["select"])
        constants = own.constants(learner.how.constant)
        nothing = torch.zeros(n, learner.nodes.n, dtype=torch.bool)
        filling = Resampled("any", seed) if learner.how.ablation == "resample" else constants
        full, empty = select.whole.loss, select(nothing, range(n), filling).loss
        empty = torch.minimum(empty, torch.tensor([coin(task) for task in data.tasks], dtype=empty.dtype))
        if not (full.isfinite() & empty.isfinite()).all():
            raise UserError(f"{learner.name}: losses of the whole model are not finite; its weights are damaged")
        found.append(Goal(*(part[of] for part in (target.of(full, empty), full, empty))))
    shared = torch.stack([goal.target for goal in found]).amax(0)
    return [goal._replace(target=shared) for goal in found]


def real(task: int, tasks: Sequence[Task]) -> int:
    """Return the task that a control is made of, and of any other task itself."""
    wanted = replace(tasks[task], nonsense=False)
    return tasks.index(wanted) if wanted in tasks else task


@dataclass(frozen=True)
class Examiner:
    """Examines models one by one.

    Args:
        data: The tasks.
        draws: Random circuits for each circuit.
        seed: Their seed.
        track: Shows how far it is.
    """

    data: TaskData
    draws: int
    seed: int
    track: Callable[[Iterable[Validated], int, str], Iterable[Validated]]

    def __call__(
        self, learner: Learner, permuted: Learner | None, means: Sequence[Means], targets: Tensor
    ) -> ModelCircuits:
        """Return what is known of the circuits of a model.

        Args:
            learner: Its circuits.
            permuted: Circuits of the same model with permuted weights.
            means: Of the model, and of that.
            targets: The loss to reach in each task.
        """
        data, model, nodes = self.data, learner.model, learner.nodes
        select, report = (Evaluation(model, nodes, data.tasks, data.images[name]) for name in ("select", "report"))
        validator = Validator(
            model, nodes, select, report, self._fillings(learner, means[0]), draws=self.draws, seed=self.seed
        )
        is_real = [p for p, circuit in enumerate(learner.circuits) if not data.tasks[circuit.task].nonsense]
        tasks = [learner.circuits[p].task for p in is_real]
        validated = self._validated(learner, is_real, means[0], validator, targets)
        controls = self._controls(learner, permuted, means, targets, validated)
        masks = torch.stack([one.mask for one in validated])
        shown = learner.constants(means[0]).cpu()
        counts, live = validator.counts(masks, shown[is_real] if shown.ndim == 3 else shown)
        seeds = [learner.circuits[p].seed for p in is_real]
        reached = [p for p, one in enumerate(validated) if one.reached]
        own, of, by = [masks[p] for p in reached], [tasks[p] for p in reached], [seeds[p] for p in reached]
        stability = {task: overlap(of_seeds(own, of, task), validator.wiring) for task in sorted(set(tasks))}
        overlaps = [None if (one := stability[task]) is None else (one.nodes, one.chance) for task in tasks]
        return ModelCircuits(
            model=learner.name,
            tasks=[data.names[task] for task in tasks],
            seeds=seeds,
            validated=validated,
            controls=controls,
            counts=counts,
            live=live,
            stability={data.names[task]: one for task, one in stability.items()},
            sharing=overlap(of_tasks(own, of, by), validator.wiring),
            verdicts=[verdict(*parts) for parts in zip(validated, controls, overlaps, strict=True)],
        )

    def _validated(
        self, learner: Learner, circuits: Sequence[int], means: Means, validator: Validator, targets: Tensor
    ) -> list[Validated]:
        """Return what is known of some circuits; each rank looks at a part of them."""
        rank, world = rank_and_world()
        own = list(circuits)[rank::world]
        tasks = [learner.circuits[p].task for p in own]
        constants = means.constants(learner.how.constant).to(learner.thresholds.device)
        model, nodes = learner.model, learner.nodes
        by_gradient = attributions(model, nodes, self.data.tasks, self.data.images["train"], constants).cpu()
        rivals = {
            "by gradient": by_gradient[tasks],
            "by magnitude": magnitudes(model, nodes).expand(len(own), -1),
        }
        elsewhere = sorted({learner.circuits[p].task for p in circuits})
        filling = of_circuits(filling_of(learner, means, self.seed), own) if own else torch.empty(1, nodes.n)
        looked_at = validator(learner.scores()[own], rivals, tasks, elsewhere, filling, targets[tasks])
        return all_in_turns(list(self.track(looked_at, len(own), learner.name) if own else []))

    def _fillings(self, learner: Learner, means: Means) -> dict[str, Filling]:
        """Return what else nodes that are off could hold, by name."""
        device = learner.thresholds.device
        others: dict[str, Filling] = {
            kind.replace("_", " "): means.constants(kind).to(device)
            for kind in CONSTANTS
            if kind != learner.how.ablation
        }
        names: dict[Donor, str] = {"any": "resampled", "same": "resampled same side", "other": "resampled other side"}
        return {**others, **{name: Resampled(donor, self.seed) for donor, name in names.items()}}

    def _controls(
        self,
        learner: Learner,
        permuted: Learner | None,
        means: Sequence[Means],
        targets: Tensor,
        found: Sequence[Validated],
    ) -> list[dict[str, Control]]:
        """Return for each circuit those that were learnt where there is nothing to find."""
        data = self.data
        tasks = [one.task for one in found]
        nonsense = {real(c.task, data.tasks): p for p, c in enumerate(learner.circuits) if data.tasks[c.task].nonsense}
        parts = [("nonsense labels", learner, means[0], nonsense)]
        if permuted is not None:
            parts.append(("permuted weights", permuted, means[1], {c.task: p for p, c in enumerate(permuted.circuits)}))
        controls: list[dict[str, Control]] = [{} for _ in tasks]
        for name, of, own_means, rows in parts:
            filling, scores = filling_of(of, own_means, self.seed), of.scores()
            learnt, select, report = (
                Evaluation(of.model, of.nodes, data.tasks, data.images[split])
                for split in ("train", "select", "report")
            )
            run = Validator(of.model, of.nodes, select, report, {}, draws=self.draws, seed=self.seed)
            for task, p in rows.items():
                score, number, own = scores[p : p + 1], of.circuits[p].task, of_circuits(filling, [p])
                smallest = int(run.sizes(score, [number], own, targets[[task]]).smallest[0])
                for control, one in zip(controls, found, strict=True):
                    if one.task == task:
                        size = int(one.switches.sum())
                        loss, known = (at_size(split, score, size, number, own) for split in (report, learnt))
                        control[name] = Control(loss, known, smallest)
        return controls
