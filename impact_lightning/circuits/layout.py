"""Where the nodes of a circuit stand in a picture: in columns by site, with few lines that cross."""

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from impact_lightning.circuits.graph import CircuitGraph, Node

MOST_POINTS = 2000  # where residual links are led past other nodes
COLUMNS = (("attn_in",), ("q", "k", "v"), ("attn_out",), ("mlp_in",), ("mlp_neuron",), ("mlp_out",))  # of a block
STAGGER = {"k": 0.42, "v": 0.84}  # parts of a column by which sites stand to the right of the first one


class Place(NamedTuple):
    """Where a node stands: in columns from the left and rows from the top."""

    x: float
    y: float


class Layout(NamedTuple):
    """Where everything stands."""

    nodes: dict[int, Place]  # by id
    strands: list[tuple[Place, Place]]  # pieces of the residual links


def columns_of(graph: CircuitGraph) -> list[list[Node]]:
    """Return the nodes by column, in order of execution; q, k and v share one, and stand beside each other in it."""
    number = {site: i for i, sites in enumerate(COLUMNS) for site in sites}
    found: dict[tuple[int, int], list[Node]] = {}
    for node in graph.nodes:
        found.setdefault((node.block, number[node.site]), []).append(node)
    return [found[key] for key in sorted(found)]


def layout(graph: CircuitGraph, rounds: int = 12) -> Layout:
    """Return where nodes stand: they move towards what they are joined to, and the fewest crossings win."""
    columns = columns_of(graph)
    column_of = {node.id: x for x, column in enumerate(columns) for node in column}
    strands = _strands(graph, column_of)
    order = [[node.id for node in column] for column in columns]
    for i, x in column_of.items():
        if i < 0:
            order[x].append(i)
    lines = [(edge.source, edge.target) for edge in graph.edges]
    joined = _joined(column_of, {1.0: lines, 0.3: [*strands, *graph.products]})
    y = {i: place - (len(ids) - 1) / 2 for ids in order for place, i in enumerate(ids)}
    best, fewest = dict(y), math.inf
    for turn in range(rounds):
        forward = turn % 2 == 0
        for ids in order if forward else order[::-1]:
            _settle(ids, y, {i: _side(i, joined, column_of, forward) for i in ids})
        for ids in order:  # where both sides pull, lines become straight
            _settle(ids, y, joined)
        if (n := crossings([*lines, *strands], column_of, y)) < fewest:
            best, fewest = dict(y), n
    top, reach, x_of = min(best.values(), default=0), _reach(columns), _x(columns)
    enters = {i: Place(x_of.get(i, reach[x][0]), best[i] - top) for i, x in column_of.items()}
    leaves = {i: Place(x_of.get(i, reach[x][1]), best[i] - top) for i, x in column_of.items()}
    pieces = [(leaves[a], enters[b]) for a, b in strands]
    pieces += [(enters[i], leaves[i]) for i in column_of if enters[i] != leaves[i]]  # past q, k and v
    return Layout({node.id: enters[node.id] for node in graph.nodes}, pieces)


def crossings(lines: Iterable[tuple[int, int]], column_of: Mapping[int, int], y: Mapping[int, float]) -> int:
    """Return how many pairs of lines between the same two columns cross."""
    by_columns: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for a, b in lines:
        by_columns.setdefault((column_of[a], column_of[b]), []).append((y[a], y[b]))
    n = 0
    for ends in by_columns.values():
        above: list[float] = []  # where lines end that begin higher
        waiting: list[float] = []  # likewise of those that begin at the same node
        last = -math.inf
        for source, target in sorted(ends):
            if source > last:
                for known in waiting:
                    insort(above, known)
                waiting, last = [], source
            n += len(above) - bisect_right(above, target)
            waiting.append(target)
    return n


def spread(wanted: Sequence[float], room: Sequence[float]) -> list[float]:
    """Return places in the given order, as near as can be to the wanted ones, that leave each its room.

    Example:
        >>> spread([0.0, 0.0, 5.0], [1.0, 1.0, 1.0])
        [-0.5, 0.5, 5.0]
    """
    before = [0.0]  # how far behind the first one each stands at the least
    for a, b in pairwise(room):
        before.append(before[-1] + (a + b) / 2)
    pools: list[tuple[float, int]] = []  # mean and number of those that stand shoulder to shoulder
    for place, offset in zip(wanted, before, strict=False):
        mean, n = place - offset, 1
        while pools and pools[-1][0] > mean:
            other, m = pools.pop()
            mean, n = (other * m + mean * n) / (m + n), m + n
        pools.append((mean, n))
    flat = [mean for mean, n in pools for _ in range(n)]
    return [mean + offset for mean, offset in zip(flat, before, strict=False)]


Neighbours = Mapping[int, Sequence[tuple[int, float]]]  # of a node: others, and how strongly they pull


def _strands(graph: CircuitGraph, column_of: dict[int, int]) -> list[tuple[int, int]]:
    """Cut residual links at the columns that they pass, so that they run between the nodes there.

    The links of a channel meet at the same points, which get negative ids and enter `column_of`.
    """
    channel = {node.id: node.channel for node in graph.nodes}
    passed = {(channel[a], x) for a, b in graph.residual for x in range(column_of[a] + 1, column_of[b])}
    if len(passed) > MOST_POINTS:
        return [(a, b) for a, b in graph.residual]
    points = {point: -1 - i for i, point in enumerate(sorted(passed))}
    column_of.update({i: x for (_, x), i in points.items()})
    found = dict[tuple[int, int], None]()
    for a, b in graph.residual:
        chain = [a, *(points[channel[a], x] for x in range(column_of[a] + 1, column_of[b])), b]
        found.update(dict.fromkeys(pairwise(chain)))
    return list(found)


def _joined(column_of: Mapping[int, int], lines: Mapping[float, Sequence[tuple[int, int]]]) -> Neighbours:
    found: dict[int, list[tuple[int, float]]] = {i: [] for i in column_of}
    for pull, ends in lines.items():
        for a, b in ends:
            found[a].append((b, pull))
            found[b].append((a, pull))
    return found


def _side(i: int, joined: Neighbours, column_of: Mapping[int, int], forward: bool) -> list[tuple[int, float]]:
    """Return what a node is joined to in the columns before it, or behind it."""
    here = column_of[i]
    return [(j, pull) for j, pull in joined[i] if (column_of[j] < here if forward else column_of[j] > here)]


def _settle(ids: list[int], y: dict[int, float], joined: Neighbours) -> None:
    """Order a column by the mean places of what its nodes are joined to, and put them there."""
    wanted = {}
    for i in ids:
        total = sum(pull for _, pull in joined[i])
        wanted[i] = sum(pull * y[j] for j, pull in joined[i]) / total if total else y[i]
    ids.sort(key=lambda i: (wanted[i], y[i]))
    room = [1.0 if i >= 0 else 0.5 for i in ids]
    y.update(zip(ids, spread([wanted[i] for i in ids], room), strict=True))


def _reach(columns: Sequence[Sequence[Node]]) -> list[tuple[float, float]]:
    """Return where columns begin and end: wide ones hold q, k and v, and blocks stand apart."""
    found: list[tuple[float, float]] = []
    x, block = 0.0, None
    for column in columns:
        x += 0.35 if block not in (None, column[0].block) else 0.0
        parts = [STAGGER.get(node.site, 0.0) for node in column]
        found.append((x, x + max(parts) - min(parts)))
        x, block = found[-1][1] + 1, column[0].block
    return found


def _x(columns: Sequence[Sequence[Node]]) -> dict[int, float]:
    found = dict[int, float]()
    for column, (left, _) in zip(columns, _reach(columns), strict=True):
        first = min(STAGGER.get(node.site, 0.0) for node in column)
        found.update({node.id: left + STAGGER.get(node.site, 0.0) - first for node in column})
    return found
