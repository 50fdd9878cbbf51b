"""Circuits that know nothing match those that were found, and measures of chance are those of their formulas."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.controls import areas, faithfulness, jaccard, p_value, random_circuits
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.validation import SHARES
from tests.circuits.test_fold import vit


def masked(nodes: Nodes, share: float = 0.3) -> Tensor:
    return torch.rand(nodes.n_switches, generator=torch.Generator().manual_seed(0)) < share


def by_site(nodes: Nodes, switches: Tensor) -> dict[int, Tensor]:
    """Return the switches `(P, n_switches)` of each site, found by a loop: a switch lies where its first node does."""
    places: dict[int, list[int]] = {}
    for switch in range(nodes.n_switches):
        first = min(node for node in range(nodes.n) if int(nodes.switch_of[node]) == switch)
        (number,) = [i for i, site in enumerate(nodes.sites) if site.start <= first < site.start + site.width]
        places.setdefault(number, []).append(switch)
    return {number: switches[:, own] for number, own in places.items()}


# -------------------------------------------------------------------------------------------------- random circuits


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize(("granularity", "tie_qk"), [("channel", False), ("head", False), ("channel", True)])
@pytest.mark.parametrize("outside", [False, True])
def test_random_circuits_are_as_large_in_every_site(
    share: float, granularity: Literal["channel", "head"], *, tie_qk: bool, outside: bool
) -> None:
    nodes = Nodes(vit(), granularity=granularity, tie_qk=tie_qk)
    switches = masked(nodes, share)
    drawn = random_circuits(switches, nodes, 20, seed=1, outside=outside)
    assert drawn.dtype == torch.bool
    assert drawn.shape == (20, nodes.n_switches)
    sizes = {site: int(part.sum()) for site, part in by_site(nodes, switches[None]).items()}
    for site, part in by_site(nodes, drawn).items():
        assert part.sum(1).tolist() == [sizes[site]] * 20


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 1.0])
def test_circuits_are_drawn_outside_of_a_circuit_as_far_as_sites_have_others(share: float) -> None:
    nodes = Nodes(vit(), granularity="head")
    switches = masked(nodes, share)
    drawn = random_circuits(switches, nodes, 20, seed=1, outside=True)
    own = by_site(nodes, switches[None])
    for site, shared in by_site(nodes, drawn & switches).items():
        k, width = int(own[site].sum()), own[site].shape[1]
        assert shared.sum(1).tolist() == [max(0, 2 * k - width)] * 20  # what the others are too few for


@pytest.mark.parametrize("outside", [False, True])
def test_random_circuits_are_drawn_evenly(*, outside: bool) -> None:
    nodes = Nodes(vit())
    mask = torch.zeros(nodes.n, dtype=torch.bool)
    mask[nodes.site(1, "v").of][:4] = True  # 4 of 16
    counts = random_circuits(mask, nodes, 4000, seed=2, outside=outside)[:, nodes.site(1, "v").of].sum(0)
    free, p = (slice(4, 16), 4 / 12) if outside else (slice(0, 16), 4 / 16)
    assert (counts[free] - 4000 * p).abs().max() < 5 * math.sqrt(4000 * p * (1 - p))
    assert int(counts.sum()) == int(counts[free].sum())


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
