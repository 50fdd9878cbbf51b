"""Tasks draw the images that they promise, and are judged by their formulas."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.circuits.tasks import Readout, Task, draw, judge, name_of
from impact_lightning.types import UserError

C = 5


def logits(n: int = 12, seed: int = 0) -> Tensor:
    return 3 * torch.randn(n, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------- judging


def test_the_score_of_a_class_against_the_rest_is_the_logit_of_its_probability() -> None:
    z, targets = logits(), torch.arange(12) % 2
    found = judge(Task("rest", (3,)), z, targets, z)
    p = z.softmax(1)[:, 3]
    score = torch.where(targets == 1, found.margin, -found.margin)
    torch.testing.assert_close(score.sigmoid(), p, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.loss, F.binary_cross_entropy(p, targets.double(), reduction="none"))
    assert torch.equal(found.correct, (p > 0.5) == (targets == 1))


def test_a_class_against_another_is_softplus_of_the_difference() -> None:
    z, targets = logits(), torch.arange(12) % 2
    found = judge(Task("pair", (2, 0)), z, targets, z)
    s = z[:, 2] - z[:, 0]
    torch.testing.assert_close(found.loss, torch.where(targets == 1, F.softplus(-s), F.softplus(s)))
    torch.testing.assert_close(found.margin, torch.where(targets == 1, s, -s))
    assert torch.equal(found.correct, (s > 0) == (targets == 1))


def test_among_classes_is_cross_entropy_over_their_logits() -> None:
    z, targets, classes = logits(), torch.arange(12) % 3, [4, 0, 2]
    found = judge(Task("among", tuple(classes)), z, targets, z)
    part = z[:, classes]
    torch.testing.assert_close(found.loss, F.cross_entropy(part, targets, reduction="none"))
    assert torch.equal(found.correct, part.argmax(1) == targets)
    for i in range(12):
        others = [float(part[i, j]) for j in range(3) if j != int(targets[i])]
        assert float(found.margin[i]) == pytest.approx(float(part[i, targets[i]]) - max(others))


def test_divergence_is_that_of_the_circuit_from_the_model() -> None:
    z, full = logits(seed=0), logits(seed=1)
    found = judge(Task("kl"), z, torch.zeros(12, dtype=torch.long), full)
    p, q = full.softmax(1), z.softmax(1)
    torch.testing.assert_close(found.loss, (p * (p.log() - q.log())).sum(1))
    assert torch.equal(found.margin, -found.loss)
    assert torch.equal(found.correct, z.argmax(1) == full.argmax(1))


def test_the_model_does_not_diverge_from_itself() -> None:
    z = logits()
    assert judge(Task("kl"), z, torch.zeros(12, dtype=torch.long), z).loss.abs().max() < 1e-14


@pytest.mark.parametrize("task", [Task("rest", (1,)), Task("pair", (0, 1)), Task("among", (0, 1)), Task("kl")])
def test_judging_is_in_float32_at_least(task: Task) -> None:
    z, targets = logits().bfloat16(), torch.arange(12) % 2
    found = judge(task, z, targets, logits(seed=1).bfloat16())
    assert found.loss.dtype == torch.float32
    torch.testing.assert_close(found.loss, judge(task, z.float(), targets, logits(seed=1).bfloat16().float()).loss)


@pytest.mark.parametrize("task", [Task("rest", (1,)), Task("pair", (0, 1)), Task("among", (0, 1)), Task("kl")])
def test_losses_and_their_gradients_are_finite_for_sure_answers(task: Task) -> None:
    z = torch.tensor([[400.0, -400, 0, 0, 0], [-400, 400, 0, 0, 0]], requires_grad=True)
    loss = judge(task, z, torch.tensor([0, 1]), z.detach().flip(0)).loss
    assert loss.isfinite().all()
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert gradient.isfinite().all()


# ---------------------------------------------------------------------------------------------------------- drawing

LABELS = torch.arange(100) % 4  # 25 of each


@pytest.mark.parametrize(("readout", "classes"), [("rest", (2,)), ("pair", (2, 0))])
def test_both_sides_are_alike_and_are_what_they_are_said_to_be(readout: Readout, classes: tuple[int, ...]) -> None:
    rows, targets = draw(Task(readout, classes), LABELS, 10, seed=0)
    assert len(rows) == len(rows.unique()) == 20
    assert targets.tolist() == [1] * 10 + [0] * 10
    assert (LABELS[rows[targets == 1]] == 2).all()
    others = LABELS[rows[targets == 0]]
    assert (others == 0).all() if readout == "pair" else (others != 2).all()


def test_several_classes_share_the_images_in_equal_parts() -> None:
    rows, targets = draw(Task("among", (3, 0, 1)), LABELS, 12, seed=0)
    assert len(rows.unique()) == 24
    assert targets.bincount().tolist() == [8, 8, 8]
    assert torch.equal(LABELS[rows], torch.tensor([3, 0, 1])[targets])


def test_all_predictions_are_drawn_from_all_images() -> None:
    rows, targets = draw(Task("kl"), LABELS, 20, seed=0)
    assert len(rows.unique()) == 40
    assert torch.equal(targets, LABELS[rows])


def test_both_sides_are_as_small_as_the_smaller() -> None:
    labels = torch.tensor([0] * 3 + [1] * 50)
    rows, targets = draw(Task("pair", (1, 0)), labels, 10, seed=0)
    assert targets.bincount().tolist() == [3, 3]
    assert rows[targets == 0].sort().values.tolist() == [0, 1, 2]


def test_a_contrast_is_drawn_from_the_classes_that_it_names() -> None:
    rows, targets = draw(Task("rest", (2,), against=(0, 3)), LABELS, 10, seed=0)
    assert (LABELS[rows[targets == 1]] == 2).all()
    assert set(LABELS[rows[targets == 0]].tolist()) == {0, 3}
    assert targets.bincount().tolist() == [10, 10]


def test_a_contrast_has_no_part_in_how_a_class_is_judged() -> None:
    z, targets = logits(), torch.arange(12) % 2
    found, expected = (judge(Task("rest", (3,), against), z, targets, z) for against in ((0,), ()))
    assert torch.equal(found.loss, expected.loss)


def test_what_is_left_out_is_not_drawn() -> None:
    first = draw(Task("rest", (0,)), LABELS, 12, seed=0)
    second = draw(Task("rest", (0,)), LABELS, 13, seed=0, leave_out=first.rows)
    assert not set(first.rows.tolist()) & set(second.rows.tolist())
    assert second.targets.bincount().tolist() == [13, 13]  # all that is left of the class


def test_draws_follow_their_seed() -> None:
    one, again, other = (draw(Task("rest", (0,)), LABELS, 10, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.rows, again.rows)
    assert not torch.equal(one.rows, other.rows)


@pytest.mark.parametrize("of", [("rest", (1,)), ("pair", (0, 1)), ("among", (0, 1, 2))])
def test_nonsense_has_the_images_of_its_task_and_permuted_labels(of: Any) -> None:
    real, control = (draw(Task(of[0], of[1], nonsense=nonsense), LABELS, 12, seed=0) for nonsense in (False, True))
    assert torch.equal(real.rows, control.rows)
    assert torch.equal(real.targets.bincount(), control.targets.bincount())
    assert not torch.equal(real.targets, control.targets)


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        (Task("rest", (7,)), LABELS),
        (Task("pair", (0, 7)), LABELS),
        (Task("among", (0, 1, 7)), LABELS),
        (Task("rest", (0,)), torch.zeros(9, dtype=torch.long)),
    ],
)
def test_a_side_without_images_is_refused_with_its_task(task: Task, labels: Tensor) -> None:
    with pytest.raises(UserError, match=f"task {task.readout} .*no images"):
        draw(task, labels, 5, seed=0)


def test_all_predictions_of_no_images_are_refused() -> None:
    with pytest.raises(UserError, match="no images"):
        draw(Task("kl"), LABELS, 5, seed=0, leave_out=torch.arange(100))


@pytest.mark.parametrize(
    ("readout", "classes", "message"),
    [
        ("rest", (), "one class"),
        ("rest", (1, 2), "one class"),
        ("pair", (1,), "two classes"),
        ("pair", (1, 1), "two classes"),
        ("among", (1,), "two classes or more"),
        ("among", (1, 2, 1), "two classes or more"),
        ("kl", (1,), "no class"),
    ],
)
def test_a_task_that_asks_nothing_is_refused(readout: Readout, classes: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=f"task {readout} takes {message}"):
        Task(readout, classes)


@pytest.mark.parametrize(("readout", "classes"), [("pair", (1, 2)), ("among", (1, 2)), ("kl", ()), ("rest", (0,))])
def test_a_contrast_of_others_is_for_one_class_against_others(readout: Readout, classes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="`against` is for other classes, and for rest"):
        Task(readout, classes, against=(0,))


def test_all_predictions_have_no_nonsense() -> None:
    with pytest.raises(UserError, match="kl has no labels"):
        Task("kl", nonsense=True)


def test_tasks_have_names_that_people_read() -> None:
    names = ["cat", "dog", "{0}"]
    tasks = [
        Task("rest", (0,)),
        Task("pair", (0, 1)),
        Task("among", (0, 1, 2)),
        Task("kl"),
        Task("rest", (2,), nonsense=True),
    ]
    assert [name_of(task, names) for task in tasks[:2]] == ["cat or not", "cat or dog"]
    assert name_of(tasks[3], names) == "all predictions"
    assert name_of(tasks[4], names) == "{0} or not (nonsense)"


def test_no_two_tasks_have_one_name() -> None:
    tasks = [
        *(Task("rest", (0,)), Task("rest", (0,), against=(1,)), Task("rest", (0,), against=(1, 2)), Task("kl")),
        *(Task("pair", (0, 1)), Task("pair", (1, 0)), Task("among", (0, 1)), Task("pair", (0, 1), nonsense=True)),
    ]
    assert len({name_of(task, ["cat", "dog", "owl"]) for task in tasks}) == len(tasks)


@pytest.mark.parametrize("name", ["{1}", "a {b}", "}"])
def test_a_class_name_is_no_format(name: str) -> None:
    assert name_of(Task("among", (0, 1)), [name, "dog"]) == f"among {name}, dog"
