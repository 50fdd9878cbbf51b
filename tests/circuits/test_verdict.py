"""A verdict names every check that a circuit fails, and remarks what its reader has to know."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from impact_lightning.circuits.controls import p_value
from impact_lightning.circuits.verdict import DRAWS, LEVEL, PASSED, UNABLE, Control, remarks, verdict
from impact_lightning.results import Interval
from tests.circuits.test_validation import validated

WORSE = {"nonsense labels": Control(0.4, 0.3, 9), "permuted weights": Control(0.6, 0.5, -1)}
FEW = "too few images to tell"


NO_NODE, ALL_NODES = torch.zeros(10, dtype=torch.bool), torch.ones(10, dtype=torch.bool)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, PASSED),
        ({"without": 0.5}, "fails necessity"),
        ({"alone": 0.6}, "fails sufficiency, nonsense labels, permuted weights"),
        ({"alone": 0.45}, "fails nonsense labels"),
        ({"alone": 0.4}, "fails nonsense labels"),  # as good is not better
        ({"alone": 0.39}, PASSED),
        ({"reached": False}, "no size reaches the target"),
        ({"mask": NO_NODE}, "constants reach the target"),
        ({"full": 0.55}, UNABLE),
        ({"reached": False, "mask": ALL_NODES, "alone": 9.0}, "no size reaches the target"),
    ],
)
def test_a_verdict_says_what_a_circuit_is(more: dict[str, Any], expected: str) -> None:
    assert verdict(validated(**more), WORSE, None) == expected


def test_what_is_no_circuit_is_said_before_what_a_model_cannot_do() -> None:
    assert verdict(validated(full=0.55, reached=False, mask=NO_NODE), WORSE, None) == "no size reaches the target"
    assert verdict(validated(full=0.55, mask=NO_NODE), WORSE, None) == "constants reach the target"
    assert verdict(validated(full=0.55, alone=2.0), WORSE, None) == UNABLE


def test_a_circuit_without_controls_fails_none() -> None:
    assert verdict(validated(alone=0.45), {}, None) == PASSED


@pytest.mark.parametrize(("low", "expected"), [(0.2, PASSED), (0.21, "fails held-out loss")])
def test_a_target_that_held_out_images_rule_out_is_missed(low: float, expected: str) -> None:
    intervals = {"alone": Interval(low, 0.5, "by hand")}
    assert verdict(validated(intervals=intervals), WORSE, None) == expected


@pytest.mark.parametrize(("gradient", "expected"), [(0.11, PASSED), (0.1, "fails attribution")])
def test_a_circuit_has_to_be_better_than_one_that_nobody_learnt(gradient: float, expected: str) -> None:
    assert verdict(validated(gradient=gradient), WORSE, None) == expected


@pytest.mark.parametrize(("zero", "expected"), [(0.7, PASSED), (0.71, "fails ablation")])
def test_a_circuit_with_another_constant_has_to_be_as_good_as_none(zero: float, expected: str) -> None:
    assert verdict(validated(zero=zero), WORSE, None) == expected


@pytest.mark.parametrize("name", ["mean", "mean prefix patch", "mean position"])
def test_every_other_constant_counts_and_values_of_other_images_do_not(name: str) -> None:
    one = validated()
    bad = {**one.scores["zero"], "loss": 5.0}
    assert verdict(replace(one, scores={**one.scores, name: bad}), WORSE, None) == "fails ablation"
    for other in ("resampled", "resampled same side", "resampled other side", "relaxed 25"):
        assert verdict(replace(one, scores={**one.scores, other: bad}), WORSE, None) == PASSED


@pytest.mark.parametrize(
    ("stability", "expected"),
    [
        (None, PASSED),
        ((0.5, 0.2), PASSED),
        ((0.2, 0.2), "fails stability"),
        ((0.1, 0.2), "fails stability"),
        ((math.nan, 0.2), "fails stability"),
        ((0.5, math.nan), "fails stability"),
    ],
)
def test_a_circuit_has_to_be_stabler_than_chance(stability: tuple[float, float] | None, expected: str) -> None:
    assert verdict(validated(), WORSE, stability) == expected


def test_all_that_fails_is_named_in_order() -> None:
    one = validated(alone=2.0, without=0.0, zero=0.8)
    assert verdict(one, WORSE, (0.1, 0.3)) == (
        "fails held-out loss, sufficiency, necessity, attribution, ablation, nonsense labels, permuted weights, "
        "stability"
    )


@pytest.mark.parametrize(
    ("n", "expected"), [(256.0, PASSED), (25.0, PASSED), (24.0, UNABLE), (10.0, UNABLE), (9.0, FEW), (4.0, FEW)]
)
@pytest.mark.parametrize("is_of_labels", [True, False])
def test_what_a_model_can_do_depends_on_how_many_images_say_so(n: float, expected: str, *, is_of_labels: bool) -> None:
    """3 standard errors of 25 images are 0.3, of 9 all that constants leave; own predictions are always met."""
    one = validated(full=0.801, task_is_of_labels=is_of_labels)
    for row in one.scores.values():
        row["images"] = n
    assert verdict(one, {}, None) == (expected if is_of_labels else PASSED)


def test_so_many_random_circuits_are_the_fewest_that_can_pass() -> None:
    assert p_value(0.0, torch.ones(DRAWS), lower_is_better=True) < LEVEL
    assert p_value(0.0, torch.ones(DRAWS - 1), lower_is_better=True) == LEVEL
    few: dict[str, Any] = {"random_alone": torch.ones(DRAWS - 2), "random_without": torch.zeros(DRAWS - 2)}
    assert verdict(validated(**few), {}, None) == "fails sufficiency, necessity"
    enough: dict[str, Any] = {"random_alone": torch.ones(DRAWS), "random_without": torch.zeros(DRAWS)}
    assert verdict(validated(**enough), {}, None) == PASSED


def test_draws_outside_of_a_circuit_have_no_part_in_its_verdict() -> None:
    assert verdict(validated(outside_without=torch.full((20,), 9.0)), WORSE, None) == PASSED
    assert verdict(validated(random_without=torch.full((20,), 9.0)), WORSE, None) == "fails necessity"


# ---------------------------------------------------------------------------------------------------------- remarks


def test_a_circuit_without_oddities_has_no_remarks() -> None:
    assert remarks(validated()) == ()


def test_a_target_below_the_whole_model_is_remarked() -> None:
    assert remarks(validated(target=0.04)) == ("the target is below the whole model's loss",)


@pytest.mark.parametrize(("sizes", "end"), [((2, 7), "7 switches"), ((2, -1), "the whole model")])
def test_larger_circuits_that_miss_the_target_are_remarked(sizes: tuple[int, int], end: str) -> None:
    assert remarks(validated(sizes=sizes)) == (f"larger circuits, up to {end}, do not all reach the target",)


def test_where_no_size_reaches_the_target_that_is_all_there_is_to_say() -> None:
    assert remarks(validated(sizes=(-1, -1), reached=False)) == ()
