"""All models have to reach one loss, and what controls a task has to reach the loss of that task."""

import math
from typing import Any, NamedTuple

import pytest
import torch

from impact_lightning.circuits.examination import filling_of, goals, real
from impact_lightning.circuits.learner import Circuit, Learner
from impact_lightning.circuits.learning import Ablation, Learning
from impact_lightning.circuits.means import CONSTANTS
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.resampling import Resampled
from impact_lightning.circuits.size import Target
from impact_lightning.circuits.tasks import Images, Task
from tests.circuits.test_evaluation import Held, evaluation
from tests.circuits.test_fold import pictures, vit
from tests.circuits.test_means import measured

REAL = [Task("rest", (2,)), Task("pair", (0, 4)), Task("among", (1, 3, 4)), Task("kl")]
TASKS = [*REAL, Task("among", (1, 3, 4), nonsense=True), Task("rest", (2,), nonsense=True)]
OF = [0, 1, 2, 3, 2, 0]  # the task whose target each has


class Data(NamedTuple):
    """What goals ask of data."""

    tasks: list[Task]
    images: dict[str, Any]


def data() -> Data:
    """Return tasks whose controls have other labels."""
    held = Held()
    flipped = [Images(rows, targets.flip(0)) for rows, targets in (held.images[2], held.images[0])]
    held.images += flipped
    return Data(TASKS, {"select": held})


def learner_of(kind: str, how: Learning) -> Learner:
    model = vit(kind)
    return Learner(kind, model, Nodes(model), kind, [Circuit(0, 0)], TASKS, how)


COIN = torch.tensor([2, 2, 3, math.inf], dtype=torch.float64).log()  # of sides that are told apart
KINDS = ("plain", "average pooling", "registers, qk norm")


@pytest.mark.parametrize("ablation", ["mean", "zero", "learned", "resample"])
@pytest.mark.parametrize("target", [Target(), Target("above", 0.3), Target("absolute", 0.7)])
def test_the_target_of_several_models_is_the_largest_of_theirs(target: Target, ablation: Ablation) -> None:
    learners = [learner_of(kind, Learning(ablation=ablation)) for kind in KINDS]
    means = [measured(learner.model, [pictures(7)]) for learner in learners]
    found = goals(learners, means, data(), target, 3)  # type: ignore[arg-type]
    own = []
    for learner, mean, goal in zip(learners, means, found, strict=True):
        run = evaluation(learner.model, learner.nodes)  # of the real tasks
        filling: Any = Resampled("any", 3) if ablation == "resample" else mean.constants(learner.how.constant)
        full = run.whole.loss
        empty = run(torch.zeros(4, learner.nodes.n, dtype=torch.bool), range(4), filling).loss
        empty = torch.minimum(empty, COIN)
        torch.testing.assert_close(goal.full, full[OF])  # labels of controls are others: goals are those of their task
        torch.testing.assert_close(goal.empty, empty[OF])
        own.append(target.of(full, empty)[OF])
    largest = torch.stack(own).amax(0)
    assert len({int(column.argmax()) for column in torch.stack(own).T}) > 1 or target.kind == "absolute"
    for goal in found:
        torch.testing.assert_close(goal.target, largest)


def test_one_model_has_its_own_target() -> None:
    learner = learner_of("plain", Learning())
    means = measured(learner.model, [pictures(7)])
    (goal,) = goals([learner], [means], data(), Target(), 0)  # type: ignore[arg-type]
    torch.testing.assert_close(goal.target, (goal.full + 0.1 * (goal.empty - goal.full))[OF])


def test_a_control_is_made_of_its_task() -> None:
    assert [real(number, TASKS) for number in range(6)] == OF
    alone = [Task("rest", (1,), nonsense=True), Task("rest", (2,))]
    assert [real(number, alone) for number in range(2)] == [0, 1]
    contrasts = [Task("rest", (1,)), Task("rest", (1,), (0,)), Task("rest", (1,), (0,), nonsense=True)]
    assert real(2, contrasts) == 1


def test_nodes_that_are_off_hold_what_they_were_learnt_with() -> None:
    model = vit()
    means = measured(model, [pictures(7)])
    for ablation in CONSTANTS:
        learner = learner_of("plain", Learning(ablation=ablation))
        filling: Any = filling_of(learner, means, 5)
        assert torch.equal(filling, means.constants(ablation))
    assert filling_of(learner_of("plain", Learning(ablation="resample")), means, 5) == Resampled("any", 5)
    learner = learner_of("plain", Learning(ablation="learned"))
    learner.shifts.data.fill_(2.0)
    learnt: Any = filling_of(learner, means, 5)
    torch.testing.assert_close(learnt[0], means.constants("mean") + 2 * means.deviations())
