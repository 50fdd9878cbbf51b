"""A circuit as a picture: every node and edge of a small one, numbers of them by site of a large one."""

import math
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

from impact_lightning.circuits.graph import CircuitGraph, Edge, Node
from impact_lightning.circuits.nodes import SITES
from impact_lightning.data.pictures import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NODES = 300  # that are drawn one by one
MOST_LINES = 6000  # edges and links likewise
MOST_POINTS = 2000  # where residual links are led past other nodes
POSITIVE, NEGATIVE, INK, GREY, PALE = "#2b6cb0", "#d1493f", "#22262b", "#6b7280", "#bcc4d0"
PAPER = "#f4f5f7"  # behind a block
COLUMNS = (("attn_in",), ("q", "k", "v"), ("attn_out",), ("mlp_in",), ("mlp_neuron",), ("mlp_out",))  # of a block
STAGGER = {"k": 0.42, "v": 0.84}  # parts of a column by which sites stand to the right of the first one
GAP, STEP, MOST_INCHES = 1.2, 0.25, 60.0  # between columns and rows, and of a side


def draw_circuit(file: BinaryIO, graph: CircuitGraph, title: str = "", kind: Literal["svg", "png"] = "svg") -> None:
    """Write a picture of a circuit.

    Args:
        file: Where to.
        graph: The circuit.
        title: What stands above it.
        kind: Kind of the file.
    """
    with drawing():
        metadata = {"Date": None} if kind == "svg" else None  # the same bytes on every day
        circuit_figure(graph, title).savefig(file, format=kind, dpi=110, metadata=metadata)


def circuit_figure(graph: CircuitGraph, title: str = "") -> "Figure":
    """Return the figure: nodes in columns by site, in order of execution, or bars if they are too many."""
    with drawing():
        if len(graph.nodes) > MOST_NODES or len(graph.lines()) > MOST_LINES:
            return _overview(graph, title)
        return _whole(graph, title)


# ----------------------------------------------------------------------------------------------------- places of nodes


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


# --------------------------------------------------------------------------------------------------- nodes one by one


def _whole(graph: CircuitGraph, title: str) -> "Figure":
    """Draw every node and line."""
    places, strands = layout(graph)
    right = max((place.x for place in places.values()), default=0.0)
    below = max((place.y for place in (*places.values(), *(b for _, b in strands))), default=0.0)
    gap, step = min(GAP, MOST_INCHES / (right + 2)), min(STEP, MOST_INCHES / (below + 4))
    figure, axes = _paper(max((right + 1.4) * gap, 6.2), max((below + 2) * step, 0.6) + 1.3)
    axes.set(xlim=(-0.7, right + 0.7), ylim=(below + 0.8, -1.2))
    _curves(axes, strands, PALE, 1.0, zorder=1)
    products = [(places[a], places[b]) for a, b in graph.products]
    _curves(axes, products, GREY, 0.9, zorder=1, linestyle=(0, (1.5, 2)))
    largest = _edges(axes, places, graph.edges)
    _dots(axes, places, graph.nodes, room=int(gap * 72 / 3.7))
    _headings(axes, places, graph.nodes)
    _legend(figure, graph, title)
    said = f"{_counted(graph)}."
    if largest:
        said += f" Width of a line: |weight| up to {largest:.3g}."
    _footer(figure, said if graph.nodes else "The circuit is empty.")
    return figure


def _paper(width: float, height: float) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    return figure, axes


def _edges(axes: Any, places: Mapping[int, Place], edges: Sequence[Edge]) -> float:
    """Draw edges, the heaviest on top, and return the largest absolute weight."""
    from matplotlib.collections import LineCollection

    def size(edge: Edge) -> float:
        return abs(edge.weight) if math.isfinite(edge.weight) else 0.0

    largest = max(map(size, edges), default=0.0)
    drawn = sorted(edges, key=size)
    lines = [[places[edge.source], places[edge.target]] for edge in drawn]
    look: dict[str, Any] = {
        "colors": [NEGATIVE if edge.weight < 0 else POSITIVE for edge in drawn],
        "alpha": 0.75,
        "zorder": 2,
    }
    axes.add_collection(LineCollection(lines, linewidths=[0.4 + 2.6 * size(e) / (largest or 1) for e in drawn], **look))
    return largest


def _curves(axes: Any, lines: Sequence[tuple[Place, Place]], colour: str, width: float, **look: Any) -> None:
    """Draw lines that leave and arrive level."""
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path

    paths = []
    for a, b in lines:
        bend = (b.x - a.x) / 2
        points = [a, (a.x + bend, a.y), (b.x - bend, b.y), b]
        paths.append(Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]))
    axes.add_collection(PathCollection(paths, facecolors="none", edgecolors=colour, linewidths=width, **look))


def _dots(axes: Any, places: Mapping[int, Place], nodes: Sequence[Node], room: int) -> None:
    from matplotlib.patheffects import withStroke

    at = [places[node.id] for node in nodes]
    axes.scatter([p.x for p in at], [p.y for p in at], s=20, color=INK, edgecolors="white", linewidths=0.6, zorder=3)
    for node, place in zip(nodes, at, strict=True):
        said = plain(node.label, room) if node.label else str(node.channel)
        look = {"textcoords": "offset points", "ha": "center", "fontsize": 6.5, "color": INK, "zorder": 4}
        halo = [withStroke(linewidth=1.6, foreground="white", alpha=0.85)]
        axes.annotate(said, place, (0, 3.4), parse_math=False, path_effects=halo, gid=node.name, **look)


def _headings(axes: Any, places: Mapping[int, Place], nodes: Sequence[Node]) -> None:
    """Name the sites above their nodes, and the blocks above them."""
    look = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "ha": "center"}
    sites = {(node.block, node.site): places[node.id].x for node in nodes}
    for (_, site), x in sites.items():
        axes.annotate(site, (x, 1), (0, 1), fontsize=7.5, color=GREY, **look)
    for block in dict.fromkeys(node.block for node in nodes):
        reach = [x for (of, _), x in sites.items() if of == block]
        middle = (min(reach) + max(reach)) / 2
        axes.axvspan(min(reach) - 0.5, max(reach) + 0.5, color=PAPER, zorder=0)
        axes.annotate(f"block {block}", (middle, 1), (0, 14), fontsize=9, color=INK, **look)


def _legend(figure: "Figure", graph: CircuitGraph, title: str) -> None:
    from matplotlib.lines import Line2D

    dots = (0, (1.5, 2))
    shown: list[tuple[str, str, Any, bool]] = [
        ("positive weight", POSITIVE, "-", any(edge.weight > 0 for edge in graph.edges)),
        ("negative weight", NEGATIVE, "-", any(edge.weight < 0 for edge in graph.edges)),
        ("same channel of the residual stream", PALE, "-", bool(graph.residual)),
        ("q × k", GREY, dots, bool(graph.products)),
    ]
    handles = [Line2D([], [], label=name, color=c, linestyle=style) for name, c, style, is_there in shown if is_there]
    _title(figure, title, handles)


def _title(figure: "Figure", title: str, handles: Sequence[Any] = ()) -> None:
    """Write the title and, below it, what lines mean."""
    words = plain(title, int(figure.get_figwidth() * 11))
    if not handles:
        if words:
            figure.suptitle(words, x=0.01, ha="left", fontsize=10.5, color=INK, parse_math=False)
        return
    look = {"ncols": 4, "frameon": False, "fontsize": 7.5, "alignment": "left"}
    legend = figure.legend(handles=handles, loc="outside upper left", title=words, title_fontsize=10.5, **look)
    legend.get_title().set_parse_math(False)


# -------------------------------------------------------------------------------------------------- bars of a large one


def _overview(graph: CircuitGraph, title: str) -> "Figure":
    """Draw for each block a row of bars, and arcs below it for the edges between two sites."""
    blocks = list(dict.fromkeys(node.block for node in graph.nodes))
    nodes = Counter((node.block, node.site) for node in graph.nodes)
    site_of = {node.id: (node.block, node.site) for node in graph.nodes}
    edges = Counter((site_of[edge.source], site_of[edge.target]) for edge in graph.edges)
    row, most = 1.7, max(nodes.values())
    figure, axes = _paper(9.0, 1.2 + 1.25 * len(blocks))
    _title(figure, title)
    axes.set(xlim=(-1.1, len(SITES) - 0.4), ylim=(row * len(blocks) - 0.75, -1.15))
    for place, block in enumerate(blocks):
        axes.text(-0.6, row * place, f"block {block}", ha="right", va="bottom", fontsize=9, color=INK)
        for x, site in enumerate(SITES):
            n = nodes[block, site]
            axes.bar(x, -0.6 * n / most, 0.5, bottom=row * place, color=INK, alpha=0.75)
            said = f"{n:,}" if n else "–"
            axes.text(x, row * place - 0.6 * n / most - 0.04, said, ha="center", fontsize=7, color=INK)
    for (source, target), n in edges.items():
        base = row * blocks.index(source[0])
        ends = SITES.index(source[1]), SITES.index(target[1])
        _arc(axes, ends, base, n, 0.4 + 3.6 * n / max(edges.values()))
    for x, site in enumerate(SITES):
        axes.annotate(site, (x, 1), (0, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      ha="center", fontsize=8, color=GREY)  # fmt: skip
    limits = f"at most {MOST_NODES:,} nodes, {MOST_LINES:,} edges and links"
    said = f"{_counted(graph)}: too many to draw one by one ({limits}).\n"
    _footer(figure, f"{said}Bars: kept nodes of a site. Arcs: edges between two sites.")
    return figure


def _arc(axes: Any, ends: tuple[int, int], base: float, n: int, width: float) -> None:
    """Draw an arc below a row, and its number at the lowest point."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (a, b), start = ends, base + 0.05
    depth = 0.2 + 0.22 * (b - a - 1)
    pulled = start + depth * 4 / 3  # a curve of the third degree reaches three quarters of the way
    points = [(a, start), (a, pulled), (b, pulled), (b, start)]
    path = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(PathPatch(path, facecolor="none", edgecolor=POSITIVE, linewidth=width, alpha=0.6))
    axes.text((a + b) / 2, start + depth - 0.05, f"{n:,}", ha="center", va="bottom", fontsize=7, color=INK)


# --------------------------------------------------------------------------------------------------------------- words


def plain(text: str, room: int) -> str:
    r"""Return text that every file can hold, shortened to a number of letters.

    Example:
        >>> plain("a\x00very long label", 9)
        'a�very l…'
    """
    shown = "".join(letter if letter.isprintable() else "�" for letter in text)
    return shown if len(shown) <= room else shown[: max(room - 1, 0)] + "…"


def _counted(graph: CircuitGraph) -> str:
    def count(things: Iterable[Any], one: str, many: str) -> str:
        n = len(list(things))
        return f"{n:,} {one if n == 1 else many}"

    parts = [
        count(graph.nodes, "node", "nodes"),
        count(graph.edges, "edge", "edges"),
        count(graph.residual, "residual link", "residual links"),
        count(graph.products, "q-k path", "q-k paths"),
    ]
    return ", ".join(parts)


def _footer(figure: "Figure", text: str) -> None:
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color=GREY)
