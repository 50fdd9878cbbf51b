"""A verdict names every check that a circuit fails, and remarks what its reader has to know."""

from typing import Any

import pytest
import torch

from impact_lightning.circuits.controls import p_value
from impact_lightning.circuits.verdict import DRAWS, LEVEL, PASSED, Control, remarks, verdict
from tests.circuits.test_validation import validated

WORSE = {"nonsense labels": Control(0.4, 9), "permuted weights": Control(0.6, -1)}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "passes every check"),
        ({"without": 0.5}, "fails necessity"),
        ({"alone": 0.6}, "fails sufficiency, nonsense labels, permuted weights"),
        ({"alone": 0.45}, "fails nonsense labels"),
        ({"alone": 0.4}, "fails nonsense labels"),  # as good is not better
        ({"alone": 0.39}, "passes every check"),
        ({"reached": False}, "no size reaches the target"),
        ({"mask": torch.zeros(10, dtype=torch.bool)}, "constants reach the target"),
        ({"full": 0.55}, "the model cannot do it"),
        ({"full": 0.55, "reached": False}, "the model cannot do it"),
        ({"reached": False, "mask": torch.ones(10, dtype=torch.bool), "alone": 9.0}, "no size reaches the target"),
    ],
)
def test_a_verdict_says_what_a_circuit_is(more: dict[str, Any], expected: str) -> None:
    assert verdict(validated(**more), WORSE, None) == expected


def test_a_circuit_without_controls_fails_none() -> None:
    assert verdict(validated(alone=0.45), {}, None) == PASSED


@pytest.mark.parametrize(
    ("stability", "expected"),
    [(None, PASSED), ((0.5, 0.2), PASSED), ((0.2, 0.2), "fails stability"), ((0.1, 0.2), "fails stability")],
)
def test_a_circuit_has_to_be_stabler_than_chance(stability: tuple[float, float] | None, expected: str) -> None:
    assert verdict(validated(), WORSE, stability) == expected


def test_all_that_fails_is_named_in_order() -> None:
    one = validated(alone=2.0, without=0.0)
    assert verdict(one, WORSE, (0.1, 0.3)) == (
        "fails sufficiency, necessity, nonsense labels, permuted weights, stability"
    )


@pytest.mark.parametrize(("n", "can"), [(256.0, True), (16.0, False)])
def test_what_a_model_can_do_depends_on_how_many_images_say_so(n: float, *, can: bool) -> None:
    one = validated(full=0.8)
    for row in one.scores.values():
        row["images"] = n
    assert (verdict(one, {}, None) == PASSED) == can


def test_so_many_random_circuits_are_the_fewest_that_can_pass() -> None:
    one = validated()
    assert p_value(0.0, torch.ones(DRAWS), lower_is_better=True) <= LEVEL
    assert p_value(0.0, torch.ones(DRAWS - 1), lower_is_better=True) > LEVEL
    few: dict[str, Any] = {"random_alone": torch.ones(DRAWS - 1), "random_without": torch.zeros(DRAWS - 1)}
    assert verdict(validated(**few), {}, None) == "fails sufficiency, necessity"
    assert verdict(one, {}, None) == PASSED


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
