"""The graph of a circuit has the edges that are counted, with the weights of the model, and survives its files."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.edges import count_edges, wiring
from impact_lightning.circuits.graph import (
    CircuitGraph,
    Link,
    circuit_graph,
    read_json,
    to_networkx,
    write_json,
    write_tables,
)
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.types import UserError
from tests.circuits.test_edges import KINDS, literal_weights, only, random_masks, vit

HOSTILE = 'fur, "<b>&amp;</b>"\n=1+1; ü \udc80'


def graph_of(kind: str = "plain", mask: Tensor | None = None, **more: Any) -> CircuitGraph:
    model = vit(kind)
    nodes = Nodes(model)
    return circuit_graph(model, wiring(model, nodes), random_masks(nodes)[0] if mask is None else mask, **more)


def told(**more: Any) -> CircuitGraph:
    """Return a graph with labels and numbers."""
    nodes = Nodes(vit())
    mask = random_masks(nodes)[0]
    scores = torch.arange(nodes.n).double() / 3
    scores[mask.nonzero()[:3, 0]] = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    first = int(mask[nodes.site(1, "mlp_neuron").of].nonzero()[0])
    return graph_of(labels={f"blocks.1.mlp_neuron.{first}": HOSTILE}, numbers={"score": scores}, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_the_nonzero_weights_between_kept_nodes(kind: str) -> None:
    model = vit(kind)
    nodes = Nodes(model)
    mask, wires = random_masks(nodes)[0], wiring(model, nodes)
    graph = circuit_graph(model, wires, mask)
    assert [node.id for node in graph.nodes] == mask.nonzero().squeeze(1).tolist()
    name = {node.id: node.name for node in graph.nodes}
    expected = [
        (f"{source}.{j}", f"{target}.{i}", weight)
        for source, target, weights in literal_weights(model)
        for i, row in enumerate(weights)
        for j, weight in enumerate(row)
        if weight and {f"{source}.{j}", f"{target}.{i}"} <= set(name.values())
    ]
    found = [(name[edge.source], name[edge.target], edge.weight) for edge in graph.edges]
    assert sorted(found) == sorted(expected)
    counts = count_edges(wires, mask[None])
    assert len(graph.edges) == int(counts.edges)
    assert len(graph.products) == int(counts.paths)
    assert any(edge.weight < 0 for edge in graph.edges)


def test_names_lead_back_to_nodes() -> None:
    nodes = Nodes(vit())
    mask = random_masks(nodes)[0]
    assert torch.equal(only(nodes, *(node.name for node in graph_of(mask=mask).nodes)), mask)


def test_residual_links_lead_to_all_later_readers_of_the_channel() -> None:
    names = "blocks.0.attn_in.1", "blocks.0.attn_out.1", "blocks.0.mlp_in.1", "blocks.0.mlp_out.1", "blocks.0.mlp_in.2"
    nodes = Nodes(vit())
    later = "blocks.1.attn_in.1", "blocks.1.attn_out.2", "blocks.1.mlp_in.1", "blocks.1.mlp_out.1"
    graph = graph_of(mask=only(nodes, *names, *later))
    name = {node.id: node.name for node in graph.nodes}
    assert {(name[a], name[b]) for a, b in graph.residual} == {
        ("blocks.0.attn_out.1", "blocks.0.mlp_in.1"),
        ("blocks.0.attn_out.1", "blocks.1.attn_in.1"),
        ("blocks.0.attn_out.1", "blocks.1.mlp_in.1"),
        ("blocks.0.mlp_out.1", "blocks.1.attn_in.1"),
        ("blocks.0.mlp_out.1", "blocks.1.mlp_in.1"),
    }
    assert not graph.edges
    assert not graph.products


def test_products_pair_q_and_k() -> None:
    nodes = Nodes(vit())
    graph = graph_of(mask=only(nodes, "blocks.1.q.2", "blocks.1.k.2", "blocks.1.k.3"))
    assert graph.products == (Link(nodes.site(1, "q").start + 2, nodes.site(1, "k").start + 2),)


def test_a_graph_that_would_be_too_large_is_refused() -> None:
    with pytest.raises(UserError, match="at most 20"):
        graph_of(limit=20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1, 7, 30])
def test_the_heaviest_part_has_the_heaviest_edges_and_the_nodes_at_their_ends(kind: str, most: int) -> None:
    whole = graph_of(kind)
    part = graph_of(kind, most=most)
    heaviest = sorted(whole.edges, key=lambda edge: -abs(edge.weight))[:most]
    assert set(part.edges) == set(heaviest)
    assert part.edges == tuple(edge for edge in whole.edges if edge in set(heaviest))  # in order of execution
    ends = {i for edge in part.edges for i in (edge.source, edge.target)}
    assert [node.id for node in part.nodes] == sorted(ends)
    assert part.residual == tuple(link for link in whole.residual if ends.issuperset(link))
    assert part.products == tuple(link for link in whole.products if ends.issuperset(link))
    assert part.whole == part.size == whole.size == (len(whole.nodes), len(whole.edges))
    assert whole.whole is None


def test_a_graph_with_room_for_all_edges_is_whole() -> None:
    whole = graph_of()
    assert graph_of(most=len(whole.edges)) == whole
    assert graph_of(most=len(whole.edges) - 1).whole == whole.size


def test_edges_that_weigh_the_same_are_taken_in_order_and_nan_last() -> None:
    model = vit()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("blocks.") and name.endswith("weight") and weight.ndim == 2:
                weight.fill_(1.0)
        first: Any = model.blocks
        first[0].attn.qkv.weight[0, 0] = math.nan
    nodes = Nodes(model)
    wires, mask = wiring(model, nodes), torch.ones(nodes.n, dtype=torch.bool)
    whole = circuit_graph(model, wires, mask).edges
    assert math.isnan(whole[0].weight)
    assert circuit_graph(model, wires, mask, most=5).edges == whole[1:6]


def test_a_part_of_a_circuit_survives_its_file(tmp_path: Path) -> None:
    part = told(most=9)
    write_json(tmp_path / "circuit.json", part)
    assert str(read_json(tmp_path / "circuit.json")) == str(part)  # equal up to nan
    old = json.loads((tmp_path / "circuit.json").read_text())
    del old["whole"]
    (tmp_path / "circuit.json").write_text(json.dumps(old))
    assert read_json(tmp_path / "circuit.json").whole is None


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"score of nodes has shape \(3,\)"):
        graph_of(numbers={"score": torch.ones(3)})
    with pytest.raises(UserError, match="label"):
        graph_of(numbers={"label": torch.ones(Nodes(vit()).n)})


# --------------------------------------------------------------------------------------------------------------- files


def test_json_gives_back_the_graph(tmp_path: Path) -> None:
    graph = told()
    write_json(tmp_path / "a.json", graph)
    again = read_json(tmp_path / "a.json")
    assert (again.edges, again.residual, again.products) == (graph.edges, graph.residual, graph.products)
    assert repr(again.nodes) == repr(graph.nodes)  # nan is not equal to itself
    assert HOSTILE in [node.label for node in again.nodes]
    assert [again.nodes[i].numbers["score"] for i in (1, 2)] == [math.inf, -math.inf]
    json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda _: pytest.fail("no JSON: NaN"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "holds no graph"),
        ("[]", "holds no graph"),
        ('{"schema": 1}', "holds no graph"),
        ('{"schema": 9}', "schema 9"),
        ('{"schema": 1, "nodes": [[1]], "edges": [], "residual": [], "products": []}', "holds no graph"),
        ('{"schema": 1, "nodes": [], "edges": [[1, 2, 0.5, "m"]], "residual": [], "products": []}', "from 1 to 2"),
    ],
)
def test_a_file_that_holds_no_graph_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a\.json.*{said}"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json: there is no such file"):
        read_json(tmp_path / "b.json")


def test_tables_hold_nodes_and_lines(tmp_path: Path) -> None:
    graph = told()
    write_tables(tmp_path / "new", graph)
    tables = {}
    for name in ("nodes", "edges"):
        with (tmp_path / "new" / f"{name}.csv").open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    assert [row["name"] for row in tables["nodes"]] == [node.name for node in graph.nodes]
    assert HOSTILE.replace("\udc80", "\\udc80") in [row["label"] for row in tables["nodes"]]
    assert float(tables["nodes"][4]["score"]) == graph.nodes[4].numbers["score"]
    edges = [row for row in tables["edges"] if row["kind"] == "edge"]
    assert [float(row["weight"]) for row in edges] == [edge.weight for edge in graph.edges]
    assert [row["matrix"] for row in edges] == [edge.matrix for edge in graph.edges]
    kinds = [row["kind"] for row in tables["edges"]]
    assert kinds.count("residual") == len(graph.residual) > 0
    assert kinds.count("product") == len(graph.products) > 0
    known = {row["name"] for row in tables["nodes"]}
    assert {row["source"] for row in tables["edges"]} | {row["target"] for row in tables["edges"]} <= known


def test_networkx_has_the_same_nodes_and_lines() -> None:
    pytest.importorskip("networkx")
    graph = told()
    made = to_networkx(graph)
    assert list(made.nodes) == [node.name for node in graph.nodes]
    assert made.number_of_edges() == len(graph.lines())
    assert made.nodes[graph.nodes[4].name] == {
        "id": graph.nodes[4].id,
        "block": 0,
        "site": graph.nodes[4].site,
        "channel": graph.nodes[4].channel,
        "label": "",
        "score": graph.nodes[4].numbers["score"],
    }
    weights = sorted(data["weight"] for *_, data in made.edges(data=True) if data["kind"] == "edge")
    assert weights == sorted(edge.weight for edge in graph.edges)


def test_without_networkx_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(UserError, match="pip install networkx"):
        to_networkx(graph_of())


def test_a_gate_and_a_value_are_two_edges() -> None:
    model = vit("packed gate", density=1.0)
    nodes = Nodes(model)
    mask = only(nodes, "blocks.0.mlp_in.1", "blocks.0.mlp_neuron.4")
    graph = circuit_graph(model, wiring(model, nodes), mask)
    weight = model.blocks[0].mlp.fc1.weight
    assert [(edge.matrix, edge.weight) for edge in graph.edges] == [
        ("blocks.0.mlp.fc1.value", float(weight[4, 1])),
        ("blocks.0.mlp.fc1.gate", float(weight[4 + len(weight) // 2, 1])),
    ]
