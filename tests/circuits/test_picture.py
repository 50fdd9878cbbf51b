"""The picture of a circuit holds every node and edge of a small one, and the numbers of a large one."""

import xml.etree.ElementTree as ET
from io import BytesIO
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

from impact_lightning.circuits import picture
from impact_lightning.circuits.edges import wiring
from impact_lightning.circuits.graph import CircuitGraph, Edge, Link, Node, circuit_graph
from impact_lightning.circuits.layout import columns_of, crossings, layout, spread
from impact_lightning.circuits.nodes import SITES, Nodes
from impact_lightning.circuits.picture import NEGATIVE, POSITIVE, circuit_figure, draw_circuit, plain
from tests.circuits.test_edges import random_masks, vit

HOSTILE = "$fur$ <b> & \x00 \udc80 --> 毛"


def graph_of(share: float = 0.5, **more: Any) -> CircuitGraph:
    model = vit(density=0.4)
    nodes = Nodes(model)
    return circuit_graph(model, wiring(model, nodes), random_masks(nodes, share=share)[0], **more)


def ladder(n: int) -> CircuitGraph:
    """Return paths of three nodes each, which cross if they are drawn by channel."""
    sites = "mlp_in", "mlp_neuron", "mlp_out"
    nodes = tuple(Node(100 * s + c, 0, site, c) for s, site in enumerate(sites) for c in range(n))
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    edges = [Edge(c, 100 + shuffled[c], 1.0, "fc1") for c in range(n)]
    edges += [Edge(100 + c, 200 + shuffled[c], -1.0, "fc2") for c in range(n)]
    return CircuitGraph(nodes, tuple(edges), (), ())


# -------------------------------------------------------------------------------------------------------------- places


def crossing(graph: CircuitGraph, y: dict[int, float]) -> int:
    column_of = {node.id: x for x, column in enumerate(columns_of(graph)) for node in column}
    return crossings([(edge.source, edge.target) for edge in graph.edges], column_of, y)


def test_crossings_are_those_of_every_pair() -> None:
    generator = torch.Generator().manual_seed(1)
    graph = graph_of()
    column_of = {node.id: x for x, column in enumerate(columns_of(graph)) for node in column}
    y = {node.id: float(torch.randint(6, (), generator=generator)) for node in graph.nodes}
    expected = 0
    for i, a in enumerate(graph.edges):
        for b in graph.edges[:i]:
            same = (column_of[a.source], column_of[a.target]) == (column_of[b.source], column_of[b.target])
            expected += same and (y[a.source] - y[b.source]) * (y[a.target] - y[b.target]) < 0
    assert crossing(graph, y) == expected > 0


def test_paths_that_need_not_cross_do_not() -> None:
    graph = ladder(12)
    assert crossing(graph, {node.id: float(node.channel) for node in graph.nodes}) > 0
    places = layout(graph).nodes
    assert crossing(graph, {i: place.y for i, place in places.items()}) == 0
    assert all(places[edge.source].y == pytest.approx(places[edge.target].y) for edge in graph.edges)


def test_nodes_stand_in_columns_by_site_with_room_for_each() -> None:
    graph = graph_of(0.7)
    places = layout(graph).nodes
    assert set(places) == {node.id for node in graph.nodes}
    x_of = {(node.block, node.site): places[node.id].x for node in graph.nodes}
    assert all(places[node.id].x == x_of[node.block, node.site] for node in graph.nodes)
    in_order = [x_of[block, site] for block in range(2) for site in SITES]
    assert in_order == sorted(in_order)
    assert len(set(in_order)) == 16
    for column in columns_of(graph):
        rows = sorted(places[node.id].y for node in column)
        assert rows[0] >= 0
        assert all(b - a > 0.999 for a, b in pairwise(rows))


def test_fewer_lines_cross_than_by_channel() -> None:
    graph = graph_of(0.6)
    by_channel = {node.id: float(i) for i, node in enumerate(graph.nodes)}
    found = {i: place.y for i, place in layout(graph).nodes.items()}
    assert crossing(graph, found) < 0.8 * crossing(graph, by_channel)


def test_residual_links_run_from_writer_to_reader_past_other_columns() -> None:
    graph = graph_of(0.4)
    places, strands = layout(graph)
    follow: dict[Any, list[Any]] = {}
    for a, b in strands:
        follow.setdefault(a, []).append(b)
        assert a.x < b.x

    def ends(place: Any) -> set[Any]:
        return {place} | {end for b in follow.get(place, []) for end in ends(b)}

    assert graph.residual
    for link in graph.residual:
        assert places[link.target] in ends(places[link.source])
    assert layout(CircuitGraph(graph.nodes, (), (), ())).strands == []


def test_spread_keeps_order_and_room() -> None:
    assert spread([], []) == []
    assert spread([3.0, 3.0, 3.0], [1.0, 1.0, 1.0]) == [2.0, 3.0, 4.0]
    assert spread([0.0, 10.0], [1.0, 1.0]) == [0.0, 10.0]
    assert spread([0.0, 0.0], [1.0, 0.5]) == [-0.375, 0.375]


# ------------------------------------------------------------------------------------------------------------- pictures


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def _size(dots: Any) -> int:
    return len(dots.get_offsets())


def test_every_node_and_edge_is_drawn() -> None:
    graph = graph_of(labels={"blocks.0.mlp_neuron.1": "fur"})
    figure = circuit_figure(graph, "a title")
    axes: Any = figure.axes[0]
    lines: Any = next(part for part in axes.collections if isinstance(part, LineCollection))
    assert len(lines.get_segments()) == len(graph.edges)
    colours = [to_hex(colour) for colour in lines.get_colors()]
    assert colours.count(NEGATIVE) == sum(edge.weight < 0 for edge in graph.edges) > 0
    assert colours.count(POSITIVE) == sum(edge.weight > 0 for edge in graph.edges) > 0
    widths: Any = lines.get_linewidths()
    assert list(widths) == sorted(widths)  # the heaviest lie on top
    assert max(widths) == pytest.approx(3.0)
    dots: Any = max((part for part in axes.collections if isinstance(part, PathCollection)), key=_size)
    assert len(dots.get_offsets()) == len(graph.nodes)
    said = {text.get_gid(): text.get_text() for text in axes.texts if text.get_gid()}
    assert said == {
        node.name: "fur" if node.name == "blocks.0.mlp_neuron.1" else str(node.channel) for node in graph.nodes
    }
    assert {"block 0", "block 1", *SITES} <= set(texts(figure))
    footer = figure.get_supxlabel()
    assert footer.startswith(
        f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, {len(graph.residual)} residual links"
    )


def test_a_large_circuit_is_drawn_as_bars_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of()
    for limit in ("MOST_NODES", "MOST_LINES"):
        with monkeypatch.context() as patched:
            patched.setattr(picture, limit, 10)
            figure = circuit_figure(graph)
        assert "too many to draw one by one" in figure.get_supxlabel()
        numbers = [int(text) for text in texts(figure) if text.isdigit()]
        assert sum(numbers) == len(graph.nodes) + len(graph.edges)
        n_q = sum((node.block, node.site) == (0, "q") for node in graph.nodes)
        assert numbers[1] == n_q  # bars come by site


@pytest.mark.parametrize("room", [0, 300])
def test_a_part_of_a_circuit_says_of_how_much(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MOST_NODES", room)
    graph = graph_of(most=7)
    nodes, edges = graph_of().size
    footer = circuit_figure(graph).get_supxlabel()
    assert footer.startswith(f"{len(graph.nodes)} of {nodes} nodes, 7 of {edges} edges, ")
    assert ("the heaviest are counted" in footer) == (room == 0)


@pytest.mark.parametrize("kind", ["svg", "png"])
@pytest.mark.parametrize("most", [0, 300])
def test_files_are_pictures_with_the_same_bytes_each_time(
    kind: Literal["svg", "png"], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "MOST_NODES", most)
    graph = graph_of(0.3, labels={f"blocks.0.attn_in.{c}": HOSTILE for c in range(6)})
    files = [BytesIO(), BytesIO()]
    for file in files:
        draw_circuit(file, graph, HOSTILE, kind)
    first, second = (file.getvalue() for file in files)
    assert first == second
    if kind == "svg":
        assert ET.fromstring(first).tag.endswith("svg")
        assert b"<b>" not in first
    else:
        assert first.startswith(b"\x89PNG")


def test_circuits_with_hardly_anything_are_drawn() -> None:
    node = Node(3, 0, "q", 3)
    none = circuit_figure(CircuitGraph((), (), (), ()), "nothing")
    assert none.get_supxlabel() == "The circuit is empty."
    alone = circuit_figure(CircuitGraph((node,), (), (), ()))
    assert alone.get_supxlabel() == "1 node, 0 edges, 0 residual links, 0 q-k paths."
    other = Node(9, 0, "k", 3)
    weights = (Edge(3, 9, float("nan"), "m"), Edge(3, 9, 0.0, "m"))
    draw_circuit(BytesIO(), CircuitGraph((node, other), weights, (), (Link(3, 9),)))


def test_a_deep_circuit_stays_within_a_poster() -> None:
    nodes = tuple(Node(i, i // 6, SITES[(0, 3, 4, 5, 6, 7)[i % 6]], i % 5) for i in range(288))
    links = tuple(
        Link(a.id, b.id) for a in nodes for b in nodes[a.id + 1 :] if (a.site[-3:], b.site[-3:]) == ("out", "_in")
    )
    figure = circuit_figure(CircuitGraph(nodes, (), links[:3000], ()))
    assert max(figure.get_size_inches()) <= 64


def test_words_are_cut_and_cleaned() -> None:
    assert plain("a\x00\udc80\nb", 9) == "a\ufffd\ufffd\ufffdb"
    assert plain("123456789", 5) == "1234…"
