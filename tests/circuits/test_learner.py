"""The loss of a step is what a loop over circuits gives, whatever replaces nodes, and no step is lost for good."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.backbones import patch
from impact_lightning.circuits.learner import Circuit, Goal, Learner
from impact_lightning.circuits.learning import Ablation, Learning
from impact_lightning.circuits.masks import MaskKind
from impact_lightning.circuits.means import Means
from impact_lightning.circuits.nodes import Nodes, NodeSite
from impact_lightning.circuits.resampling import donors_of_step
from impact_lightning.circuits.task_images import steps
from impact_lightning.circuits.tasks import judge
from tests.circuits.test_evaluation import TASKS, Held
from tests.circuits.test_fold import pictures, vit
from tests.circuits.test_means import measured
from tests.circuits.test_resampling import literal_resampled

CIRCUITS = [Circuit(0, 0), Circuit(0, 1), Circuit(1, 0), Circuit(2, 4), Circuit(3, 0)]
ABLATIONS: list[Ablation] = ["mean", "mean_prefix_patch", "mean_position", "zero", "learned", "resample"]
GOAL = Goal(*(torch.full((5,), value) for value in (0.5, 0.2, 0.9)))


@pytest.fixture(scope="module")
def model() -> Any:
    return vit()


@pytest.fixture(scope="module")
def means(model: Any) -> Means:
    return measured(model, [pictures(7)])


def learner_of(model: Any, **how: Any) -> Learner:
    """Return the masks of a model, half of the switches on, and constants that were learnt."""
    settings = Learning(**{"batch": 6, **how})
    learner = Learner("tiny", model, Nodes(model), "w", CIRCUITS, TASKS, settings).double()
    generator = torch.Generator().manual_seed(8)
    for name, parameter in learner.named_parameters():
        if not name.startswith("model."):
            parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return learner


@contextmanager
def started(learner: Learner, means: Means, goal: Goal = GOAL, batches: int = 0) -> Iterator[Learner]:
    held: Any = Held()
    learner.start(means, goal, held, batches)
    try:
        yield learner
    finally:
        learner.stop()


def constant(model: Any, nodes: Nodes, images: Tensor, mask: Tensor, mu: Tensor) -> Tensor:
    """Return logits of a circuit `(n,)` with constants `(1 or T, n)` by patches of named sites."""

    def edit(site: NodeSite) -> Callable[[Tensor], Tensor]:
        m, c = mask[site.of], mu[:, site.of]
        return lambda x: m * x + (1 - m) * c

    with patch(model, {str(site): edit(site) for site in nodes.sites}):
        logits: Tensor = model(images)
    return logits


def by_hand(learner: Learner, means: Means, step: int) -> list[float]:
    """Return the loss of each circuit in a step."""
    held, found = Held(), []
    drawn = next(steps([held.images[c.task] for c in CIRCUITS], 6, [c.seed for c in CIRCUITS], start=step))
    others = donors_of_step(drawn.places, step)
    for p, circuit in enumerate(CIRCUITS):
        images = held[drawn.places[p]]
        mask = learner.nodes.expand((learner.thresholds[p : p + 1] >= 0).double())[0]
        if learner.how.ablation == "resample":
            z = literal_resampled(learner.model, learner.nodes, mask, images, held[others[p]])
        else:
            table = learner.constants(means)
            mu = table[p] if table.ndim == 3 else table
            z = constant(learner.model, learner.nodes, images, mask, mu)
        full = learner.model(images)
        found.append(float(judge(TASKS[circuit.task], z, drawn.targets[p], full).loss.mean()))
    return found


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("step", [0, 3])
def test_the_loss_of_a_step_is_that_of_a_loop(ablation: Ablation, step: int, model: Any, means: Means) -> None:
    learner = learner_of(model, ablation=ablation, penalty=1e-3)
    expected = sum(by_hand(learner, means, step)) + 1e-3 * float((learner.thresholds >= 0).sum())
    with started(learner, means, batches=step):
        assert float(learner.loss(step, 0.5).detach()) == pytest.approx(expected, rel=1e-9)
        assert learner.progress()[0] == pytest.approx(sum(by_hand(learner, means, step)) / 5, rel=1e-9)


@pytest.mark.parametrize("name", ["shifts", "thresholds"])
def test_gradients_of_what_is_learnt_are_finite_differences(name: str, model: Any, means: Means) -> None:
    """Masks in between, which are smooth: what straight-through gradients stand for is tested with gates."""
    learner = learner_of(model, ablation="learned", mask="sigmoid", penalty=1e-3)
    parameter: Tensor = getattr(learner, name)

    def loss() -> Tensor:
        with started(learner, means):
            return learner.loss(0, 0.0)

    (found,) = torch.autograd.grad(loss(), parameter)
    assert found.abs().max() > 1e-3
    for p, node in ((0, 3), (1, 70), (2, 130), (3, 200), (4, 350), (2, 17), (0, 299)):
        slopes = []
        for sign in (1, -1):
            parameter.data[p, node] += sign * 1e-5
            slopes.append(float(loss().detach()))
            parameter.data[p, node] -= sign * 1e-5
        assert float(found[p, node]) == pytest.approx((slopes[0] - slopes[1]) / 2e-5, rel=1e-4, abs=1e-8)


def test_learnt_constants_begin_at_the_mean_and_move_by_standard_deviations(model: Any, means: Means) -> None:
    learner = Learner("tiny", model, Nodes(model), "w", CIRCUITS, TASKS, Learning(ablation="learned"))
    found = learner.constants(means)
    assert found.shape == (5, 1, learner.nodes.n)
    assert torch.equal(found, means.constants("mean").expand(5, 1, -1))
    learner.shifts.data[2, 7] = 1.5
    moved = learner.constants(means) - found
    assert float(moved[2, 0, 7]) == pytest.approx(1.5 * float(means.deviations()[7]))
    assert int(moved.count_nonzero()) == 1


def test_no_other_circuit_has_part_in_a_gradient(model: Any, means: Means) -> None:
    learner = learner_of(model, ablation="learned")
    with started(learner, means):
        learner.loss(0, 0.5).backward()
    both = [parameter.grad for parameter in (learner.thresholds, learner.shifts)]
    learner = learner_of(model, ablation="learned")
    learner.thresholds.data[1:] += 0.3
    learner.shifts.data[1:] -= 1
    with started(learner, means):
        learner.loss(0, 0.5).backward()
    for found, parameter in zip(both, (learner.thresholds, learner.shifts), strict=True):
        assert found is not None
        assert parameter.grad is not None
        assert torch.equal(found[0], parameter.grad[0])
        assert not torch.equal(found[1:], parameter.grad[1:])


def test_gradients_are_clipped_circuit_by_circuit(model: Any) -> None:
    learner = learner_of(model, ablation="learned")
    n = learner.nodes.n
    size = torch.tensor([0.1, 1.0, 5.0, 0.0, 20.0], dtype=torch.float64)[:, None]
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(n // 2)
    for parameter in (learner.thresholds, learner.shifts):
        parameter.grad = size * signs
    learner.clip()
    for parameter in (learner.thresholds, learner.shifts):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, size.clamp(max=1) * signs)


# ------------------------------------------------------------------------------------------------------------ steps


EASY = Goal(*(torch.full((5,), value) for value in (1e3, 0.0, 1e3)))
HARD = Goal(*(torch.full((5,), value) for value in (-1.0, -2.0, -1.0)))
MIXED = Goal(*(torch.tensor([easy, *([hard] * 4)]) for easy, hard in ((1e3, -1.0), (0.0, -2.0), (1e3, -1.0))))


def run_of(model: Any, means: Means, goals: list[Goal], **how: Any) -> tuple[Learner, list[Tensor], Any]:
    """Return masks after steps, their thresholds before each step, and the optimizer."""
    learner = learner_of(model, **how)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=0.02)
    before = []
    with started(learner, means):
        for step, goal in enumerate(goals):
            before.append(learner.thresholds.detach().clone())
            learner.goal = goal
            optimizer.zero_grad()
            learner.loss(step, 0.5).backward()
            optimizer.step()
            learner.after_step(0.5, optimizer)
    return learner, before, optimizer


def test_thresholds_that_are_kept_are_those_that_the_loss_is_of(model: Any, means: Means) -> None:
    learner, before, _ = run_of(model, means, [EASY, EASY])
    assert torch.equal(learner.good.thresholds, before[1])
    assert not torch.equal(before[1], learner.thresholds)


def test_a_lost_last_step_does_not_count(model: Any, means: Means) -> None:
    for n_lost in (1, 2):
        learner, before, _ = run_of(model, means, [EASY, EASY, *[MIXED] * n_lost])
        scores = learner.scores()
        assert torch.equal(scores[1:], before[1][1:])
        assert torch.equal(scores[0], learner.thresholds[0])


def test_a_last_step_that_is_not_lost_counts(model: Any, means: Means) -> None:
    learner, _, _ = run_of(model, means, [EASY, MIXED, EASY])
    assert torch.equal(learner.scores(), learner.thresholds)


def test_three_lost_steps_set_a_circuit_back(model: Any, means: Means) -> None:
    learner, before, optimizer = run_of(model, means, [EASY, *[MIXED] * 3])
    assert torch.equal(learner.thresholds[1:], before[0][1:])
    assert not torch.equal(learner.thresholds[0], before[0][0])
    state = optimizer.state[learner.thresholds]
    for name in ("exp_avg", "exp_avg_sq"):
        assert not state[name][1:].any()
        assert state[name][0].any()
    assert learner.prices.mean_loss.isnan().tolist() == [False, *[True] * 4]


def test_a_fixed_price_sets_nothing_back_and_stays(model: Any, means: Means) -> None:
    learner, before, _ = run_of(model, means, [EASY, *[HARD] * 5], penalty=1e-4)
    assert not learner.good.is_known.any()
    assert torch.equal(learner.scores(), learner.thresholds)
    assert learner.prices().tolist() == pytest.approx([1e-4] * 5)
    assert all(not torch.equal(one, learner.thresholds) for one in before)


@pytest.mark.parametrize("mask", ["heaviside", "sigmoid", "hard_concrete"])
def test_thresholds_stay_where_the_straight_through_gradient_lives(mask: MaskKind, model: Any, means: Means) -> None:
    learner = learner_of(model, mask=mask)
    learner.thresholds.data.fill_(3.0)
    optimizer = torch.optim.AdamW([learner.thresholds], lr=1e-3)
    with started(learner, means):
        learner.loss(0, 0.0).backward()
        optimizer.step()
        learner.after_step(0.0, optimizer)
    assert (float(learner.thresholds.detach().abs().max()) <= 1) == (mask == "heaviside")
