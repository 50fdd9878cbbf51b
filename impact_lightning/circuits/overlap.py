"""Overlap: how much circuits of other seeds, and of other tasks, have in common."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from impact_lightning.circuits.controls import jaccard
from impact_lightning.circuits.edges import Wiring, count_edges


class Overlap(NamedTuple):
    """How much some pairs of circuits have in common, on average."""

    nodes: float  # Jaccard index
    chance: float  # of nodes, of circuits of these sizes at random
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
    nodes = [jaccard(one, other) for one, other in pairs]
    edges = [_edge_jaccard(one, other, wiring) for one, other in pairs]
    of_nodes, of_edges = (torch.tensor(table, dtype=torch.float64).nanmean(0).tolist() for table in (nodes, edges))
    return Overlap(of_nodes[0], of_nodes[1], of_edges[0], of_edges[1], len(pairs))


def _edge_jaccard(one: Tensor, other: Tensor, wiring: Wiring) -> tuple[float, float]:
    """Return the Jaccard index of edges: an edge is of both where both its nodes are."""
    a, b, both = count_edges(wiring, torch.stack([one, other, one & other])).edges.tolist()
    total = sum(int(wires.present.sum()) for wires in wiring.wires)
    p, q = a / max(1, total), b / max(1, total)
    either = a + b - both
    return (both / either if either else float("nan")), (p * q / (p + q - p * q) if p + q else float("nan"))


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
