"""Overlaps are those of sets of nodes and of edges, and their chance that of circuits drawn at random."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.controls import random_circuits
from impact_lightning.circuits.edges import wiring
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.overlap import of_seeds, of_tasks, overlap
from tests.circuits.test_edges import KINDS, literal_weights, random_masks, vit

Edge = tuple[str, int, str, int, int]


def edges_of(model: object, nodes: Nodes, mask: Tensor) -> set[Edge]:
    """Return the edges of a circuit one by one."""
    by_site = {name: part.tolist() for name, part in nodes.by_site(mask).items()}
    found: set[Edge] = set()
    for number, (source, target, rows) in enumerate(literal_weights(model)):
        for i, row in enumerate(rows):
            for j, weight in enumerate(row):
                if weight and by_site[target][i] and by_site[source][j]:
                    found.add((source, j, target, i, number))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_overlaps_are_those_of_sets(kind: str) -> None:
    model = vit(kind)
    nodes = Nodes(model)
    masks = list(random_masks(nodes, 4, share=0.4))
    pairs = list(combinations(masks, 2))
    found = overlap(pairs, wiring(model, nodes))
    assert found is not None
    sets = [(set(a.nonzero().flatten().tolist()), set(b.nonzero().flatten().tolist())) for a, b in pairs]
    edges = [(edges_of(model, nodes, a), edges_of(model, nodes, b)) for a, b in pairs]
    assert found.pairs == 6
    assert found.nodes == pytest.approx(sum(len(a & b) / len(a | b) for a, b in sets) / 6)
    assert found.edges == pytest.approx(sum(len(a & b) / len(a | b) for a, b in edges) / 6)
    every = edges_of(model, nodes, torch.ones(nodes.n, dtype=torch.bool))
    sites = [set(range(site.start, site.start + site.width)) for site in nodes.sites]
    matrices = [{edge for edge in every if edge[4] == number} for number in {edge[4] for edge in every}]
    assert found.chance == pytest.approx(sum(by_chance(a, b, sites) for a, b in sets) / 6)
    assert found.edge_chance == pytest.approx(sum(by_chance(a, b, matrices) for a, b in edges) / 6)


def by_chance(a: set[Any], b: set[Any], groups: Sequence[set[Any]]) -> float:
    """Return the expected overlap of sets that draw as many of each group as two sets have."""
    both = sum(len(a & group) * len(b & group) / len(group) for group in groups)
    return both / (len(a) + len(b) - both)


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_the_chance_is_that_of_a_simulation(share: float) -> None:
    model = vit()
    nodes = Nodes(model)
    wires = wiring(model, nodes)
    kept = (random_masks(nodes, 1, share=share)[0]) & (nodes.site_of_switches() % 8 < 4)  # half of the sites
    drawn = nodes.expand(random_circuits(kept, nodes, 400, seed=3))
    found = [overlap([(a, b)], wires) for a, b in drawn.view(200, 2, -1)]
    values = torch.tensor([one[:4] for one in found if one is not None], dtype=torch.float64)  # (pairs, 4)
    error = values.std(0) / math.sqrt(len(values))
    for value, chance in ((0, 1), (2, 3)):
        mean = float(values[:, value].mean())
        known = float(values[:, chance].mean())
        assert mean == pytest.approx(known, abs=4 * float(error[value]) + 4e-3)  # a ratio of means, not its mean
    p = float(kept.double().mean())
    assert abs(float(values[:, 0].mean()) - p * p / (2 * p - p * p)) > 0.03  # what sites alone have in common


def test_a_circuit_overlaps_with_itself_and_not_with_its_complement() -> None:
    model = vit()
    nodes = Nodes(model)
    (mask,) = random_masks(nodes, 1)
    found = overlap([(mask, mask)], wiring(model, nodes))
    assert found is not None
    assert (found.nodes, found.edges) == (1, 1)
    other = overlap([(mask, ~mask)], wiring(model, nodes))
    assert other is not None
    assert (other.nodes, other.edges) == (0, 0)


def test_no_pair_has_no_overlap() -> None:
    model = vit()
    assert overlap([], wiring(model, Nodes(model))) is None


def test_two_empty_circuits_have_an_overlap_that_is_undefined() -> None:
    model = vit()
    nodes = Nodes(model)
    nothing = torch.zeros(nodes.n, dtype=torch.bool)
    found = overlap([(nothing, nothing)], wiring(model, nodes))
    assert found is not None
    assert all(math.isnan(value) for value in found[:4])


# ------------------------------------------------------------------------------------------------------------- pairs

MASKS = [torch.tensor([p]) for p in range(6)]
TASKS, SEEDS = [0, 0, 0, 2, 2, 1], [0, 1, 2, 0, 1, 0]


def numbers(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in pairs]


def test_circuits_of_a_task_are_compared_between_seeds() -> None:
    assert numbers(of_seeds(MASKS, TASKS, 0)) == [(0, 1), (0, 2), (1, 2)]
    assert numbers(of_seeds(MASKS, TASKS, 2)) == [(3, 4)]
    assert of_seeds(MASKS, TASKS, 1) == []


def test_circuits_of_a_seed_are_compared_between_tasks() -> None:
    assert numbers(of_tasks(MASKS, TASKS, SEEDS)) == [(0, 3), (0, 5), (1, 4), (3, 5)]
