"""The circuit viewer: the graph of each circuit, to move about in, with what its nodes respond to."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from impact_lightning.circuits.graph import CircuitGraph, Link, Node, read_json
from impact_lightning.circuits.layout import Layout, columns_of, layout
from impact_lightning.data.thumbnail_file import read_thumbnails
from impact_lightning.report.inputs import Gaps, done_tests, folders_in, heat_bytes, rounded, text_of, undone
from impact_lightning.report.section import Section, render
from impact_lightning.report.sources import unit_folder
from impact_lightning.report.sprites import Album
from impact_lightning.suite.outcome import Outcome

NAME = "circuits_viewer"
EDGES, ALL_EDGES = 1500, 100_000  # of a circuit, and of all together: the heaviest ones
LINKS = 1500  # residual links of a circuit
SHOWN = 6  # images of a node
MAP_ROOM = 4_000_000  # bytes of all heat maps together


class Limits(NamedTuple):
    """How much of each circuit the page holds."""

    edges: int
    links: int
    map_bytes: int


def section(outcome: Outcome, folder: Path, album: Album | None = None) -> Section:
    """Return the circuit viewer.

    Args:
        outcome: The run.
        folder: Its folder.
        album: Where pictures go that several viewers share; without one, the section holds its own.
    """
    gaps, own = Gaps(folder, undone(outcome, "circuits")), Album()
    places = _places(outcome, folder, gaps)
    prints = _pictures(places, own if album is None else album, gaps)
    n = max(1, len(places))
    limits = Limits(min(EDGES, max(50, ALL_EDGES // n)), min(LINKS, max(50, ALL_EDGES // n)), MAP_ROOM // n)
    found = []
    for model, name, place in places:
        with gaps.of(f"Circuit of {model}, {name}"):
            viewer = _Viewer(own if album is None else album, prints.get(model, ""), limits)
            found.append({"model": model, "name": name, **viewer.circuit(place, gaps, f"{model}, {name}")})
    data: dict[str, Any] = {"circuits": found}
    if album is None:
        data["pictures"] = own.content()
    html = render("circuits.html", circuits=found, limits=limits)
    return Section(NAME, "Circuit viewer", html, data if found else None, tuple(gaps.notes))


def _places(outcome: Outcome, folder: Path, gaps: Gaps) -> list[tuple[str, str, Path]]:
    """Return model, name and folder of each circuit."""
    found: list[tuple[str, str, Path]] = []
    for unit in done_tests(outcome, "circuits"):
        for model in unit.models:
            with gaps.of(f"Circuits of {model}"):
                top = unit_folder(folder, unit) / "circuits" / model
                below = folders_in(top)
                if not below:
                    raise ValueError(f"{top} holds no graph: empty circuits have none")
                names = _names(top)
                found += [(model, names.get(path.name[:3], path.name), path) for path in below]
    return found


def _names(top: Path) -> dict[str, str]:
    """Return what circuits are called by the numbers that their folders begin with; nothing without the masks."""
    try:
        with safetensors.safe_open(top / "masks.safetensors", "pt") as file:
            names = json.loads((file.metadata() or {})["circuits"])
        return {f"{number:03d}": str(name) for number, name in enumerate(names)}
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError):
        return {}  # folders have names as well


def _pictures(places: Sequence[tuple[str, str, Path]], album: Album, gaps: Gaps) -> dict[str, str]:
    """Take in the pictures of each model, and return the fingerprints of the images."""
    prints = {}
    for model, top in {model: place.parent for model, _, place in places}.items():
        with gaps.of(f"Pictures of circuits of {model}"):
            album.learn(thumbnails := read_thumbnails(top / "thumbnails.safetensors"))
            prints[model] = thumbnails.data
    return prints


class _Viewer:
    """Makes what the page holds of a circuit.

    Args:
        album: The pictures.
        data: Fingerprint of the images.
        limits: How much there may be.
    """

    def __init__(self, album: Album, data: str, limits: Limits) -> None:
        self.album = album
        self.data = data
        self.limits = limits

    def circuit(self, place: Path, gaps: Gaps, name: str) -> dict[str, Any]:
        """Return what the page holds of the circuit in a folder."""
        graph = read_json(place / "circuit.json")
        shown = heaviest(graph, self.limits.edges, self.limits.links)
        found: dict[str, Any] = {"tops": {}, "maps": "", "grid": None}
        with gaps.of(f"Top images of {name}, tops.json"):
            found = self._tops(shown.nodes, json.loads((place / "tops.json").read_text()))
        where = layout(shown)
        number = {node.id: i for i, node in enumerate(shown.nodes)}
        matrices = list(dict.fromkeys(edge.matrix for edge in shown.edges))
        return {
            "all": graph.size,
            "nodes": [_node(node, where) for node in shown.nodes],
            "matrices": matrices,
            "edges": [
                (number[edge.source], number[edge.target], rounded(edge.weight), matrices.index(edge.matrix))
                for edge in shown.edges
            ],
            "links": _pairs(shown.residual, number),
            "products": _pairs(shown.products, number),
            "strands": [[_place(x) for x in (*a, *b)] for a, b in where.strands],
            "columns": _columns(shown, where),
            **found,
        }

    def _tops(self, nodes: Iterable[Node], tops: dict[str, Any]) -> dict[str, Any]:
        """Return the top images of nodes by their places, with maps as long as there is room, first nodes first.

        A map tells how far a node is from the constant that replaces it where it is left out: that is what it does.
        """
        grid = tops["grid"]
        patches = int(grid[0]) * int(grid[1]) if grid else 0
        maps, found = bytearray(), {}
        for i, node in enumerate(nodes):
            images = tops["nodes"].get(str(node.id), [])[:SHOWN]
            constant = float(tops.get("constants", {}).get(str(node.id), 0.0))
            own = list(
                takewhile(lambda one: one is not None and 0 < len(one) == patches, (one["map"] for one in images))
            )
            start, n = len(maps), len(own) if len(maps) + len(own) * patches <= self.limits.map_bytes else 0
            if n:
                maps += heat_bytes(np.abs(np.array(own, np.float64) - constant))
            if images:
                rows = [self.album.use(self.data, int(one["row"])) for one in images]
                found[i] = [rows, [rounded(one["value"]) for one in images], rounded(constant), start, n]
        return {"tops": found, "maps": text_of(maps), "grid": grid}


def heaviest(graph: CircuitGraph, edges: int, links: int) -> CircuitGraph:
    """Return the part of a circuit that has its heaviest edges, in descending order of |weight|.

    Nodes that have none of them are left out, unless every edge has room. Residual links are kept between nodes that
    stay; where they have no room, none of them.
    """
    ranked = sorted(graph.edges, key=lambda edge: (-abs(edge.weight), edge.source, edge.target))  # nan never is one
    kept = ranked[:edges]
    ends = {i for edge in kept for i in (edge.source, edge.target)}
    nodes = tuple(node for node in graph.nodes if len(ranked) <= edges or node.id in ends)
    known = {node.id for node in nodes}
    residual = tuple(link for link in graph.residual if known.issuperset(link))
    products = tuple(link for link in graph.products if known.issuperset(link))
    return replace(
        graph, nodes=nodes, edges=tuple(kept), residual=residual if len(residual) <= links else (), products=products
    )


def _node(node: Node, where: Layout) -> list[Any]:
    place = where.nodes[node.id]
    numbers = {name: rounded(x) for name, x in node.numbers.items()}
    return [node.id, node.name, node.site, node.channel, node.label, _place(place.x), _place(place.y), numbers]


def _columns(graph: CircuitGraph, where: Layout) -> list[tuple[float, str]]:
    """Return where each site of each block stands, and what is written above it."""
    found = {}
    for column in columns_of(graph):
        for node in column:
            found[node.block, node.site] = where.nodes[node.id].x
    return [(_place(x), f"{block} {site}") for (block, site), x in found.items()]


def _pairs(links: Sequence[Link], number: dict[int, int]) -> list[tuple[int, int]]:
    return [(number[link.source], number[link.target]) for link in links]


def _place(x: float) -> float:
    return round(x, 2)
