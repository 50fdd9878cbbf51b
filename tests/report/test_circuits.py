"""The circuit viewer: what comes into the page, and what is said of what does not."""

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from impact_lightning.report import circuits
from impact_lightning.suite.outcome import Outcome
from tests.report.conftest import CONSTANT, MODELS, NAMES, PATCHES, TOP, make_graph, make_tops


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, to be damaged."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def circuit(folder: Path) -> Path:
    return folder / "circuits" / "test" / "circuits" / MODELS[0] / "000-cube-or-not-seed-0"


def first(outcome: Outcome, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = circuits.section(outcome, folder).data["circuits"][0]
    return found


def test_it_holds_every_circuit_by_its_name(outcome: Outcome, run_folder: Path) -> None:
    made = circuits.section(outcome, run_folder)
    names = [(one["model"], one["name"]) for one in made.data["circuits"]]
    assert made.gaps == ()
    assert names == [(model, f"{name} or not, seed 0") for model in MODELS for name in NAMES[:2]]


def test_a_circuit_has_its_nodes_and_edges(outcome: Outcome, run_folder: Path) -> None:
    one, graph = first(outcome, run_folder), make_graph()
    assert one["all"] == (36, 72)
    assert [node[0] for node in one["nodes"]] == [node.id for node in graph.nodes]
    assert one["nodes"][0][4] == "<b>bold</b>"
    weights = [abs(weight) for _, _, weight, _ in one["edges"]]
    assert weights == sorted(weights, reverse=True)
    ids = {(one["nodes"][a][0], one["nodes"][b][0]) for a, b, _, _ in one["edges"]}
    assert ids == {(edge.source, edge.target) for edge in graph.edges}


def test_sites_stand_in_the_order_of_execution(outcome: Outcome, run_folder: Path) -> None:
    columns = first(outcome, run_folder)["columns"]
    sites = [
        f"{block} {site}"
        for block in (0, 1)
        for site in ("attn_in", "v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
    ]
    assert [name for _, name in sorted(columns)] == sites


def test_nodes_have_their_top_images(outcome: Outcome, run_folder: Path) -> None:
    data = circuits.section(outcome, run_folder).data
    one = data["circuits"][0]
    pictures, values, constant, start, mapped = one["tops"][3]
    node = one["nodes"][3][0]
    known = make_tops(node)
    assert [data["pictures"]["rows"][picture] for picture in pictures] == [top["row"] for top in known]
    assert values == [top["value"] for top in known]
    shown = np.frombuffer(base64.b64decode(one["maps"]), np.uint8)[start:][: TOP * PATCHES**2].reshape(TOP, -1)
    far = np.abs(np.array([top["map"] for top in known]) - CONSTANT)
    assert (constant, mapped) == (CONSTANT, TOP)
    assert np.abs(shown / 254 - far / far.max()).max() < 0.003


def test_a_large_circuit_keeps_its_heaviest_edges(
    outcome: Outcome, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuits, "EDGES", 5)
    made = circuits.section(outcome, run_folder)
    one = made.data["circuits"][0]
    weights = sorted((abs(edge.weight) for edge in make_graph().edges), reverse=True)
    assert [abs(weight) for _, _, weight, _ in one["edges"]] == pytest.approx(weights[:5], rel=1e-3)
    assert one["all"] == (36, 72)
    assert {i for a, b, _, _ in one["edges"] for i in (a, b)} == set(range(len(one["nodes"])))
    assert "5 heaviest edges" in made.html


def test_maps_end_where_their_room_ends(outcome: Outcome, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = TOP * PATCHES**2
    monkeypatch.setattr(circuits, "MAP_ROOM", 4 * 2 * size)  # two nodes of each of the four circuits
    one = first(outcome, run_folder)
    assert [(start, mapped) for *_, start, mapped in one["tops"].values()][:3] == [(0, TOP), (size, TOP), (2 * size, 0)]
    assert len(base64.b64decode(one["maps"])) == 2 * size


@pytest.mark.parametrize("name", ["circuit.json", "tops.json"])
@pytest.mark.parametrize("content", [None, "", '{"schema": 1', "[]", '{"schema": 1, "nodes": [[1]]}'])
def test_a_damaged_file_is_a_gap(outcome: Outcome, folder: Path, name: str, content: str | None) -> None:
    path = circuit(folder) / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    made = circuits.section(outcome, folder)
    assert len(made.gaps) == 1
    assert "cube or not, seed 0" in made.gaps[0]
    assert str(folder) not in made.gaps[0]
    assert len(made.data["circuits"]) == (3 if name == "circuit.json" else 4)


def test_top_images_of_another_shape_have_no_map(outcome: Outcome, folder: Path) -> None:
    tops = json.loads((circuit(folder) / "tops.json").read_text())
    tops["nodes"]["0"][0]["map"] = None
    tops["nodes"]["1"][0]["map"] = [1.0]
    tops["nodes"]["2"][1]["map"] = None  # only the first images of a node have maps where there are many nodes
    (circuit(folder) / "tops.json").write_text(json.dumps(tops))
    found = first(outcome, folder)["tops"]
    assert [found[i][4] for i in (0, 1, 2)] == [0, 0, 1]


def test_folders_have_names_where_the_masks_are_missing(outcome: Outcome, folder: Path) -> None:
    (circuit(folder).parent / "masks.safetensors").unlink()
    assert first(outcome, folder)["name"] == "000-cube-or-not-seed-0"


def test_a_model_without_circuits_is_a_gap(outcome: Outcome, folder: Path) -> None:
    shutil.rmtree(circuit(folder).parent)
    made = circuits.section(outcome, folder)
    assert MODELS[0] in made.gaps[0]
    assert {one["model"] for one in made.data["circuits"]} == {MODELS[1]}


def test_a_failed_unit_is_a_gap(outcome: Outcome, run_folder: Path) -> None:
    units = [replace(unit, state="failed", error="no memory") for unit in outcome.units]
    made = circuits.section(replace(outcome, units=units), run_folder)
    assert made.data is None
    assert made.gaps == ("circuits is failed: no memory",)
    assert "no circuits" in made.html
