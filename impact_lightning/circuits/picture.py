"""A circuit as a picture: every node and edge of a small one, numbers of them by site of a large one."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from impact_lightning.circuits.graph import CircuitGraph, Edge, Node
from impact_lightning.circuits.layout import Place, layout
from impact_lightning.circuits.nodes import SITES
from impact_lightning.data.pictures import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NODES = 300  # that are drawn one by one
MOST_LINES = 6000  # edges and links likewise
POSITIVE, NEGATIVE, INK, GREY, PALE = "#2b6cb0", "#d1493f", "#22262b", "#6b7280", "#bcc4d0"
PAPER = "#f4f5f7"  # behind a block
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
    part = " Of edges the heaviest are counted, of nodes those at their ends." if graph.whole else ""
    _footer(figure, f"{said}Bars: kept nodes of a site. Arcs: edges between two sites.{part}")
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
    def count(n: int, one: str, many: str, of: int) -> str:
        return f"{n:,} {f'of {of:,} ' if of > n else ''}{one if of == 1 else many}"

    n_residual, n_products = len(graph.residual), len(graph.products)
    parts = [
        count(len(graph.nodes), "node", "nodes", graph.size.nodes),
        count(len(graph.edges), "edge", "edges", graph.size.edges),
        count(n_residual, "residual link", "residual links", n_residual),
        count(n_products, "q-k path", "q-k paths", n_products),
    ]
    return ", ".join(parts)


def _footer(figure: "Figure", text: str) -> None:
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7.5, color=GREY)
