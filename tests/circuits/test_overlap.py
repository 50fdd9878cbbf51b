"""Overlaps are those of sets of nodes and of edges, and their chance that of circuits drawn at random."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

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
    total = len(edges_of(model, nodes, torch.ones(nodes.n, dtype=torch.bool)))
    assert found.pairs == 6
    assert found.nodes == pytest.approx(sum(len(a & b) / len(a | b) for a, b in sets) / 6)
    assert found.edges == pytest.approx(sum(len(a & b) / len(a | b) for a, b in edges) / 6)
    for chance, of, n in ((found.chance, sets, nodes.n), (found.edge_chance, edges, total)):
        shares = [(len(a) / n, len(b) / n) for a, b in of]
        assert chance == pytest.approx(sum(p * q / (p + q - p * q) for p, q in shares) / 6)


@pytest.mark.parametrize("sizes", [(20, 30), (60, 15)])
def test_the_chance_of_nodes_is_that_of_a_simulation(sizes: tuple[int, int]) -> None:
    model = vit()
    nodes = Nodes(model)
    wires, generator = wiring(model, nodes), torch.Generator().manual_seed(0)
    drawn = [[torch.rand(nodes.n, generator=generator).argsort().argsort() < k for k in sizes] for _ in range(300)]
    found = [overlap([(a, b)], wires) for a, b in drawn]
    values = torch.tensor([one.nodes for one in found if one is not None])
    error = float(values.std()) / math.sqrt(len(values))
    assert found[0] is not None
    assert float(values.mean()) == pytest.approx(found[0].chance, abs=4 * error + 2e-3)  # a ratio of means


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
