"""Circuits that know nothing match those that were found, and measures of chance are those of their formulas."""

import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.controls import areas, faithfulness, jaccard, p_value, random_circuits, ratio_of_sets
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.validation import SHARES
from tests.circuits.test_fold import vit


def masked(nodes: Nodes, share: float = 0.3) -> Tensor:
    return torch.rand(nodes.n_switches, generator=torch.Generator().manual_seed(0)) < share


def by_site(nodes: Nodes, switches: Tensor) -> dict[int, Tensor]:
    """Return the switches `(P, n_switches)` of each site, found by a loop: a switch lies where its first node does."""
    places: dict[int, list[int]] = {}
    switch_of = nodes.switch_of.tolist()
    for switch in range(nodes.n_switches):
        first = switch_of.index(switch)
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


def of_sites(nodes: Nodes, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return a circuit `(n,)` with so many nodes in each site, drawn at random."""
    mask = torch.zeros(nodes.n, dtype=torch.bool)
    for site, k in zip(nodes.sites, sizes, strict=True):
        mask[site.start + torch.randperm(site.width, generator=generator)[:k]] = True
    return mask


def test_the_jaccard_index_of_two_circuits_by_hand() -> None:
    nodes = Nodes(vit())
    a, b = (torch.zeros(nodes.n, dtype=torch.bool) for _ in range(2))
    v, q = nodes.site(1, "v"), nodes.site(0, "q")
    a[v.of][:3] = True
    b[v.of][1:4] = True
    a[q.of][:1] = True  # where b has none, nothing is shared by chance
    value, chance = jaccard(a, b, nodes)
    assert value == 2 / 5
    both = 3 * 3 / v.width
    assert chance == pytest.approx(both / (4 + 3 - both))
    assert jaccard(a, a, nodes)[0] == 1
    assert jaccard(a, ~a, nodes)[0] == 0
    assert jaccard(torch.ones_like(a), torch.ones_like(a), nodes) == (1, 1)


@pytest.mark.parametrize("case", ["unlike sites", "one site", "other sites", "even"])
def test_the_chance_level_of_the_jaccard_index_is_that_of_circuits_matched_in_every_site(case: str) -> None:
    nodes = Nodes(vit())
    widths = torch.tensor([site.width for site in nodes.sites])
    many, few = (widths * 0.75).long(), (widths * 0.1).long()
    odd = torch.arange(len(widths)) % 2 == 0
    p, q = {
        "unlike sites": (torch.where(odd, many, few), torch.where(odd, many, few)),
        "one site": (torch.where(torch.arange(len(widths)) == 2, many, 0),) * 2,
        "other sites": (torch.where(odd, many, few), torch.where(odd, few, many)),
        "even": (many // 2, many // 2),
    }[case]
    generator = torch.Generator().manual_seed(0)
    draws = 300
    pairs = [[of_sites(nodes, size.tolist(), generator) for size in (p, q)] for _ in range(draws)]
    found = [jaccard(a, b, nodes) for a, b in pairs]
    values, chances = (torch.tensor(column, dtype=torch.float64) for column in zip(*found, strict=True))
    assert float(chances.std()) == pytest.approx(0, abs=1e-12)
    chance, error = float(chances[0]), float(values.std()) / math.sqrt(draws)
    assert float(values.mean()) == pytest.approx(chance, abs=4 * error + 3e-3)  # a ratio of means, not its mean
    x, y = float(p.sum()) / nodes.n, float(q.sum()) / nodes.n
    uniform = x * y / (x + y - x * y)  # of circuits that are as large and do not care for sites
    if case != "even":
        assert abs(float(values.mean()) - uniform) > 0.05
        assert abs(chance - uniform) > 0.05


def test_random_circuits_overlap_with_what_they_match_as_by_chance() -> None:
    nodes = Nodes(vit())
    switches = masked(nodes, 0.3) & (nodes.site_of_switches() % 3 == 0)
    drawn = nodes.expand(random_circuits(switches, nodes, 400, seed=6))
    found = [jaccard(nodes.expand(switches[None])[0], one, nodes) for one in drawn]
    values = torch.tensor([value for value, _ in found], dtype=torch.float64)
    error = float(values.std()) / math.sqrt(len(values))
    assert float(values.mean()) == pytest.approx(found[0][1], abs=4 * error + 3e-3)


def test_two_empty_circuits_have_no_jaccard_index() -> None:
    nodes = Nodes(vit())
    nothing = torch.zeros(nodes.n, dtype=torch.bool)
    assert all(math.isnan(x) for x in jaccard(nothing, nothing, nodes))


@pytest.mark.parametrize(
    ("both", "a", "b", "expected"), [(1, 2, 2, 1 / 3), (2, 2, 2, 1), (0, 3, 0, 0), (0.5, 1, 1, 1 / 3)]
)
def test_the_ratio_of_sets_is_what_both_have_of_what_either_has(both: float, a: int, b: int, expected: float) -> None:
    assert ratio_of_sets(both, a, b) == pytest.approx(expected)
    assert ratio_of_sets(both, b, a) == pytest.approx(expected)
    assert math.isnan(ratio_of_sets(0, 0, 0))


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
