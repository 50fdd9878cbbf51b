"""Circuits that know nothing match those that were found, and measures of chance are those of their formulas."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.controls import areas, faithfulness, jaccard, p_value, random_circuits
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.validation import SHARES, Validated
from tests.circuits.test_fold import vit


def masked(nodes: Nodes, share: float = 0.3) -> Tensor:
    return torch.rand(nodes.n, generator=torch.Generator().manual_seed(0)) < share


# -------------------------------------------------------------------------------------------------- random circuits


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_random_circuits_are_as_large_in_every_site(share: float) -> None:
    nodes = Nodes(vit())
    mask = masked(nodes, share)
    drawn = random_circuits(mask, nodes, 20, seed=1)
    assert drawn.dtype == torch.bool
    sizes = {name: int(part.sum()) for name, part in nodes.by_site(mask[None]).items()}
    for name, part in nodes.by_site(drawn).items():
        assert part.sum(1).tolist() == [sizes[name]] * 20


def test_random_circuits_are_drawn_evenly() -> None:
    nodes = Nodes(vit())
    mask = torch.zeros(nodes.n, dtype=torch.bool)
    mask[nodes.site(1, "v").of][:4] = True  # 4 of 16
    counts = random_circuits(mask, nodes, 4000, seed=2)[:, nodes.site(1, "v").of].sum(0)
    assert (counts - 1000).abs().max() < 5 * math.sqrt(4000 * 0.25 * 0.75)


def test_random_circuits_follow_their_seed_and_differ_among_themselves() -> None:
    nodes = Nodes(vit())
    one, again, other = (random_circuits(masked(nodes), nodes, 5, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one.unique(dim=0)) == 5


# ---------------------------------------------------------------------------------------------------------- p-values


@pytest.mark.parametrize(
    ("found", "lower", "expected"),
    [(0.1, True, 1 / 5), (0.2, True, 2 / 5), (0.35, True, 3 / 5), (9.0, True, 1.0), (9.0, False, 1 / 5)],
)
def test_p_values_count_draws_that_are_at_least_as_good(found: float, expected: float, *, lower: bool) -> None:
    drawn = torch.tensor([0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    assert p_value(found, drawn, lower_is_better=lower) == pytest.approx(expected)


def test_twenty_draws_suffice_for_one_in_twenty() -> None:
    assert p_value(0.0, torch.ones(20), lower_is_better=True) <= 0.05
    assert p_value(0.0, torch.ones(18), lower_is_better=True) > 0.05


# ----------------------------------------------------------------------------------------------------------- Jaccard


def test_the_jaccard_index_of_two_circuits_by_hand() -> None:
    a, b = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0]).bool(), torch.tensor([0, 1, 1, 1, 0, 0, 0, 0]).bool()
    value, chance = jaccard(a, b)
    assert value == 2 / 4
    assert chance == pytest.approx((9 / 64) / (6 / 8 - 9 / 64))
    assert jaccard(a, a)[0] == 1
    assert jaccard(a, ~a)[0] == 0


def test_the_chance_level_of_the_jaccard_index_is_that_of_random_circuits() -> None:
    n, sizes = 2000, (300, 500)
    generator = torch.Generator().manual_seed(0)
    values, chances = [], []
    for _ in range(200):
        a, b = (torch.rand(n, generator=generator).argsort() < k for k in sizes)
        value, chance = jaccard(a, b)
        values.append(value)
        chances.append(chance)
    deviation = torch.tensor(values).std().item() / math.sqrt(200)
    assert sum(values) / 200 == pytest.approx(chances[0], abs=4 * deviation + 1e-3)  # a ratio of means, not its mean


def test_two_empty_circuits_have_no_jaccard_index() -> None:
    nothing = torch.zeros(4, dtype=torch.bool)
    assert all(math.isnan(x) for x in jaccard(nothing, nothing))


# ------------------------------------------------------------------------------------------------------ faithfulness


def test_a_perfect_curve_has_a_cpr_of_0_999_and_a_cmd_of_0() -> None:
    shares = torch.tensor(SHARES, dtype=torch.float64)
    cpr, cmd = areas(shares, torch.ones_like(shares))
    assert cpr == pytest.approx(0.999, abs=1e-12)
    assert cmd == 0


def test_areas_of_a_step_by_hand() -> None:
    shares = torch.tensor(SHARES, dtype=torch.float64)
    f = (shares >= 0.1).double()  # it rises in a straight line from 0.05 to 0.1
    cpr, cmd = areas(shares, f)
    assert cpr == pytest.approx(0.9 + 0.05 / 2)
    assert cmd == pytest.approx((0.05 - 0.001) + 0.05 / 2)


def test_a_curve_above_one_counts_as_distance() -> None:
    shares = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert areas(shares, torch.tensor([2.0, 2.0], dtype=torch.float64)) == (2.0, 1.0)


def test_faithfulness_is_zero_of_the_empty_circuit_and_one_of_the_whole_model() -> None:
    found = faithfulness(torch.tensor([-2.0, 1.0, 4.0, 7.0]), torch.tensor(4.0), torch.tensor(-2.0))
    assert found.tolist() == [0.0, 0.5, 1.0, 1.5]


# ----------------------------------------------------------------------------------------------------------- verdict


def validated(
    *, alone: float = 0.1, without: float = 3.0, full: float = 1.0, empty: float = 0.5, **more: Any
) -> Validated:
    """Return a circuit of two of ten nodes, better than chance alone and missed more than chance."""
    fields: dict[str, Any] = {
        "mask": torch.tensor([True] * 2 + [False] * 8),
        "reached": True,
        "target": 0.2,
        "sizes": (2, 2),
        "alone": {"loss": alone, "accuracy": 0.9, "images": 256.0},
        "without": {"loss": without, "accuracy": 0.5, "images": 256.0},
        "full": {"loss": 0.05, "accuracy": full, "images": 256.0},
        "empty": {"loss": 0.7, "accuracy": empty, "images": 256.0},
        "random_alone": torch.linspace(0.5, 1, 20),
        "random_without": torch.linspace(0.1, 1, 20),
        "by_gradient": {"loss": 0.3},
        "cpr": 0.9,
        "cmd": 0.1,
    }
    return Validated(**{**fields, **more})


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({}, "sufficient, necessary"),
        ({"without": 0.5}, "sufficient only"),
        ({"alone": 0.6}, "no better than chance"),
        ({"reached": False}, "no size reaches the target"),
        ({"mask": torch.zeros(10, dtype=torch.bool)}, "constants reach the target"),
        ({"full": 0.55}, "the model cannot do it"),
    ],
)
def test_a_verdict_says_what_a_circuit_is(more: dict[str, Any], verdict: str) -> None:
    assert validated(**more).verdict == verdict


def test_p_values_of_a_circuit_are_of_its_losses() -> None:
    one = validated(alone=0.5)
    assert one.p_sufficient == 2 / 21  # one draw is as good
    assert one.p_necessary == 1 / 21


def test_ncq_is_the_accuracy_kept_times_the_nodes_left_out() -> None:
    assert validated(full=0.95).ncq == pytest.approx(0.9 / 0.95 * 0.8)


def test_ncq_of_a_model_that_is_always_wrong_is_undefined() -> None:
    assert math.isnan(validated(full=0.0).ncq)
