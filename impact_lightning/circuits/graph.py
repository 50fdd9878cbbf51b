"""A circuit as a graph: for people, for tables, and for programs that draw or measure graphs."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from impact_lightning.circuits.edges import Wiring, block_matrices, checked
from impact_lightning.files import atomic_write, write_csv
from impact_lightning.types import UserError

SCHEMA = 1
COLUMNS = ("id", "name", "block", "site", "channel", "label")  # of a table of nodes, before its numbers
LIMIT = 1_000_000  # lines of a graph: what a larger one would tell can be counted without it


# ------------------------------------------------------------------------------------------------------- what it holds


@dataclass(frozen=True)
class Node:
    """A kept node.

    Args:
        id: Its place among all nodes of the model.
        block: Number of its block.
        site: Name of its site.
        channel: Its place in the site.
        label: What people call it.
        numbers: What is known of it; nan where that is undefined.
    """

    id: int
    block: int
    site: str
    channel: int
    label: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What no other node is called."""
        return f"blocks.{self.block}.{self.site}.{self.channel}"


class Edge(NamedTuple):
    """A nonzero weight between two kept nodes."""

    source: int
    target: int
    weight: float  # with LayerScale
    matrix: str  # a gate and a value may both lie between two nodes


class Link(NamedTuple):
    """Two nodes that act on each other without a weight; not counted among edges."""

    source: int
    target: int


class Size(NamedTuple):
    """How large a circuit is."""

    nodes: int
    edges: int


@dataclass(frozen=True)
class CircuitGraph:
    """A circuit, or the heaviest part of one.

    Args:
        nodes: Kept nodes, in order of execution.
        edges: Nonzero weights between them.
        residual: From what is written to a channel of the residual stream to each of its later readers.
        products: From a channel of q to the same channel of k, which multiplies it.
        whole: Size of the circuit that this is a part of; none where it is all of it.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    residual: tuple[Link, ...]
    products: tuple[Link, ...]
    whole: Size | None = None

    @property
    def size(self) -> Size:
        """Return the size of the circuit, also where this is a part of it."""
        return self.whole or Size(len(self.nodes), len(self.edges))

    def lines(self) -> list[tuple[str, int, int, float | None, str]]:
        """Return edges and links as rows: kind, source, target, weight, matrix."""
        rows: list[tuple[str, int, int, float | None, str]] = [("edge", *edge) for edge in self.edges]
        rows += [("residual", link.source, link.target, None, "") for link in self.residual]
        return rows + [("product", link.source, link.target, None, "") for link in self.products]


# ------------------------------------------------------------------------------------------------------- how it is made


def circuit_graph(
    model: nn.Module,
    wiring: Wiring,
    mask: Tensor,
    *,
    labels: Mapping[str, str] | None = None,
    numbers: Mapping[str, Tensor] | None = None,
    most: int | None = None,
    limit: int = LIMIT,
) -> CircuitGraph:
    """Return the graph of one circuit.

    Args:
        model: The model that the wiring is of.
        wiring: Which weights count.
        mask: Which nodes are on, bool `(n,)`.
        labels: What nodes are called, by their names, such as `blocks.0.mlp_neuron.17`.
        numbers: What is known of nodes, each `(n,)`.
        most: Edges that the graph holds: of a larger circuit the heaviest ones, the nodes at their ends, and the
            links between these; all of them where it is none.
        limit: The most edges and links that a graph may have.
    """
    (on,) = checked(wiring, mask[None])
    n_edges, whole = sum(int(part.between(on[None])) for part in wiring.wires), None
    edges: tuple[Edge, ...] | None = None
    if most is not None and n_edges > most:
        edges, whole = _edges(model, wiring, on, most), Size(int(on.sum()), n_edges)
        ends = torch.tensor([i for edge in edges for i in (edge.source, edge.target)], device=on.device)
        on, n_edges = torch.zeros_like(on).index_fill(0, ends, True), most
    links, products = _residual(wiring, on), _products(wiring, on)
    if (n := n_edges + len(links) + len(products)) > limit:
        raise UserError(
            f"the circuit has {n:,} edges and links, and a graph holds at most {limit:,}; choose a smaller one"
        )
    if edges is None:
        edges = _edges(model, wiring, on, n_edges)
    return CircuitGraph(_nodes(wiring, on, labels or {}, numbers or {}), edges, links, products, whole)


def _nodes(wiring: Wiring, on: Tensor, labels: Mapping[str, str], numbers: Mapping[str, Tensor]) -> tuple[Node, ...]:
    if taken := set(numbers) & {*COLUMNS, "numbers"}:
        raise UserError(f"numbers of nodes cannot be called {', '.join(sorted(taken))}: that is a column of its own")
    for name, values in numbers.items():
        if values.shape != on.shape:
            raise UserError(
                f"{name} of nodes has shape {tuple(values.shape)}: give one number for each, {tuple(on.shape)}"
            )
    known = {name: values.double().tolist() for name, values in numbers.items()}
    found = []
    for site in wiring.nodes.sites:
        for channel in on[site.of].nonzero().squeeze(1).tolist():
            i = site.start + channel
            label = labels.get(f"{site}.{channel}", "")
            found.append(Node(i, site.block, site.name, channel, label, {name: of[i] for name, of in known.items()}))
    return tuple(found)


def _edges(model: nn.Module, wiring: Wiring, on: Tensor, most: int) -> tuple[Edge, ...]:
    """Return the heaviest edges in order of execution; of those that weigh the same the earlier ones, and nan is none.

    No more than one matrix has all of its edges in memory.
    """
    ends = torch.zeros(3, 0, dtype=torch.int64, device=on.device)  # number of the matrix, source, target
    weights = torch.zeros(0, dtype=torch.float64, device=on.device)
    for number, (matrix, part) in enumerate(zip(block_matrices(model, wiring.nodes), wiring.wires, strict=True)):
        rows, columns = (on[nodes].nonzero().squeeze(1) for nodes in (part.outputs, part.inputs))
        present = part.present[rows][:, columns]
        weight = matrix.weight.to(on.device)[rows][:, columns].double()
        if matrix.gain is not None:
            weight = weight * matrix.gain.to(on.device)[rows, None].double()
        of_target, of_source = present.nonzero(as_tuple=True)
        sources, targets = (columns + part.inputs.start)[of_source], (rows + part.outputs.start)[of_target]
        ends = torch.cat([ends, torch.stack([torch.full_like(sources, number), sources, targets])], 1)
        weights = torch.cat([weights, weight[present]])
        if len(weights) > most:
            heaviness = weights.abs().nan_to_num(nan=-1.0, posinf=math.inf)
            kept = heaviness.sort(descending=True, stable=True).indices[:most].sort().values
            ends, weights = ends[:, kept], weights[kept]
    numbers, sources, targets = ends
    found = zip(sources.tolist(), targets.tolist(), weights.tolist(), numbers.tolist(), strict=True)
    return tuple(Edge(source, target, weight, wiring.wires[number].name) for source, target, weight, number in found)


def _residual(wiring: Wiring, on: Tensor) -> tuple[Link, ...]:
    """Return the links between what writes a channel of the residual stream and its later readers."""
    width = wiring.nodes.site(0, "attn_out").width
    writers: list[list[int]] = [[] for _ in range(width)]  # by channel
    found = []
    for site in wiring.nodes.sites:
        if site.name in ("attn_in", "mlp_in", "attn_out", "mlp_out"):
            for channel in on[site.of].nonzero().squeeze(1).tolist():
                if site.name.endswith("_in"):
                    found += [Link(writer, site.start + channel) for writer in writers[channel]]
                else:
                    writers[channel].append(site.start + channel)
    return tuple(found)


def _products(wiring: Wiring, on: Tensor) -> tuple[Link, ...]:
    found = []
    for block in range(len(wiring.nodes.heads)):
        q, k = wiring.nodes.site(block, "q"), wiring.nodes.site(block, "k")
        both = (on[q.of] & on[k.of]).nonzero().squeeze(1).tolist()
        found += [Link(q.start + channel, k.start + channel) for channel in both]
    return tuple(found)


# -------------------------------------------------------------------------------------------------------------- files


def write_json(path: Path, graph: CircuitGraph) -> None:
    """Write a graph as JSON that `read_json` reads."""
    content = {
        "schema": SCHEMA,
        "nodes": [
            [node.id, node.block, node.site, node.channel, node.label, _numbers(node.numbers)] for node in graph.nodes
        ],
        "edges": [[edge.source, edge.target, _defined(edge.weight), edge.matrix] for edge in graph.edges],
        "residual": graph.residual,
        "products": graph.products,
        "whole": graph.whole,
    }
    with atomic_write(path) as file:
        file.write((json.dumps(content, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> CircuitGraph:
    """Return the graph that `write_json` has written; refuse a file that holds none, or one with loose ends."""
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise UserError(f"{path} has schema {content['schema']}, and this version reads {SCHEMA}; write it again")
        graph = CircuitGraph(
            tuple(_read_node(*node) for node in content["nodes"]),
            tuple(Edge(s, t, _undefined(weight), matrix) for s, t, weight, matrix in content["edges"]),
            tuple(Link(*ends) for ends in content["residual"]),
            tuple(Link(*ends) for ends in content["products"]),
            Size(*whole) if (whole := content.get("whole")) else None,  # without it: all of it
        )
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} holds no graph of a circuit ({type(error).__name__}: {error})") from error
    known = {node.id for node in graph.nodes}
    for line in chain(graph.edges, graph.residual, graph.products):
        if line[0] not in known or line[1] not in known:
            raise UserError(f"{path} is damaged: it has a line from {line[0]} to {line[1]}, of which one is no node")
    return graph


def write_tables(folder: Path, graph: CircuitGraph) -> None:
    """Write `nodes.csv` and `edges.csv` into a folder; the kinds of lines are edge, residual and product."""
    names = {node.id: node.name for node in graph.nodes}
    known = list(dict.fromkeys(name for node in graph.nodes for name in node.numbers))
    nodes: list[list[Any]] = [[*COLUMNS, *known]]
    for node in graph.nodes:
        own = [node.id, node.name, node.block, node.site, node.channel, node.label]
        nodes.append([*own, *(node.numbers.get(name, "") for name in known)])
    write_csv(folder / "nodes.csv", nodes)
    lines = [
        [kind, names[source], names[target], "" if weight is None else weight, matrix]
        for kind, source, target, weight, matrix in graph.lines()
    ]
    write_csv(folder / "edges.csv", [["kind", "source", "target", "weight", "matrix"], *lines])


def to_networkx(graph: CircuitGraph) -> Any:
    """Return a `networkx.MultiDiGraph`: nodes by name, lines with their kind, edges also with weight and matrix."""
    try:
        import networkx  # type: ignore[import-untyped]  # ships no types
    except ImportError:
        raise UserError("networkx is not installed: pip install networkx") from None
    made = networkx.MultiDiGraph()
    for node in graph.nodes:
        own = {"id": node.id, "block": node.block, "site": node.site, "channel": node.channel, "label": node.label}
        made.add_node(node.name, **own, **node.numbers)
    names = {node.id: node.name for node in graph.nodes}
    for kind, source, target, weight, matrix in graph.lines():
        more = {} if weight is None else {"weight": weight, "matrix": matrix}
        made.add_edge(names[source], names[target], kind=kind, **more)
    return made


def _read_node(
    number: int, block: int, site: str, channel: int, label: str, numbers: Mapping[str, float | str | None]
) -> Node:
    return Node(number, block, site, channel, label, {name: _undefined(x) for name, x in numbers.items()})


def _numbers(numbers: Mapping[str, float]) -> dict[str, float | str | None]:
    return {name: _defined(x) for name, x in numbers.items()}


def _defined(x: float) -> float | str | None:
    """Return a number as JSON can hold it."""
    return x if math.isfinite(x) else None if math.isnan(x) else str(x)


def _undefined(x: float | str | None) -> float:
    return math.nan if x is None else float(x)
