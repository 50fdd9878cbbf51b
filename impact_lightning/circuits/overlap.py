"""Overlap: how much circuits of other seeds, and of other tasks, have in common."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from impact_lightning.circuits.controls import jaccard, ratio_of_sets
from impact_lightning.circuits.edges import Wiring, checked


class Overlap(NamedTuple):
    """How much some pairs of circuits have in common, on average."""

    nodes: float  # Jaccard index
    chance: float  # of nodes, of circuits with as many nodes in every site at random
    edges: float
    edge_chance: float
    pairs: int


def overlap(pairs: Sequence[tuple[Tensor, Tensor]], wiring: Wiring) -> Overlap | None:
    """Return the overlap of pairs of circuits `(n,)`; None without a pair.

    Args:
        pairs: The pairs.
        wiring: Which weights of the model are nonzero.
    """
    if not pairs:
        return None
    nodes = [jaccard(one, other, wiring.nodes) for one, other in pairs]
    edges = [_edge_jaccard(one, other, wiring) for one, other in pairs]
    of_nodes, of_edges = (torch.tensor(table, dtype=torch.float64).nanmean(0).tolist() for table in (nodes, edges))
    return Overlap(of_nodes[0], of_nodes[1], of_edges[0], of_edges[1], len(pairs))


def _edge_jaccard(one: Tensor, other: Tensor, wiring: Wiring) -> tuple[float, float]:
    """Return the Jaccard index of edges, and what is expected where p and q of e from site to site share p q / e."""
    counts = _edges_by_sites(wiring, torch.stack([one, other, one & other, torch.ones_like(one)]))
    p, q, both, total = counts.cpu()
    by_chance = (p * q / total.clamp_min(1)).sum()
    return tuple(ratio_of_sets(float(x), int(p.sum()), int(q.sum())) for x in (both.sum(), by_chance))  # type: ignore[return-value]


def _edges_by_sites(wiring: Wiring, masks: Tensor) -> Tensor:
    """Return how many edges circuits `(P, n)` have by matrix; q, k and v, parts of one, apart."""
    masks = checked(wiring, masks)
    found = []
    for wires in wiring.wires:
        written = wires.into(masks).double() * masks[:, wires.outputs]  # (P, out)
        sites = [site for site in wiring.nodes.sites if wires.outputs.start <= site.start < wires.outputs.stop]
        found += [part.sum(1) for part in written.split([site.width for site in sites], 1)]
    return torch.stack(found, 1)


def of_tasks(masks: Sequence[Tensor], tasks: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of circuits of unlike tasks that were learnt with one seed."""
    return [
        (masks[i], masks[j])
        for i, j in combinations(range(len(masks)), 2)
        if tasks[i] != tasks[j] and seeds[i] == seeds[j]
    ]


def of_seeds(masks: Sequence[Tensor], tasks: Sequence[int], task: int) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of circuits of a task."""
    return list(combinations([mask for mask, own in zip(masks, tasks, strict=True) if own == task], 2))
