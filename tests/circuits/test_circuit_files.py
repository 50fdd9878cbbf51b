"""A test leaves masks, graphs and pictures, in a folder for each model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from impact_lightning.backbones import Backbone
from impact_lightning.circuits.edges import count_edges, wiring
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.training import circuit_files
from impact_lightning.training.circuit_files import file_name
from tests.circuits.runs import DEEP, ONE, SHAPE, Records, backbone, fit, measured

TASKS = (
    *('--data.tasks=[{"readout": "pair", "classes": [0, 2]}, {"readout": "rest", "classes": [1]}]',),
    *("--data.nonsense=false", "--model.target.kind=absolute", "--model.target.value=-1"),  # all nodes stay
)
NAMES = ("wide", "deep_2.0")


@pytest.fixture(scope="module")
def models(weights: Path) -> dict[str, Any]:
    first, second = NAMES
    return {first: backbone(weights / "a.safetensors"), second: backbone(weights / "deep.safetensors", DEEP)}


@pytest.fixture(scope="module")
def run(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    fit(path, models, *TASKS, steps=2)
    return path


@pytest.fixture(scope="module")
def records(run: Path, models: dict[str, Any]) -> Records:
    (run / "circuits").mkdir()
    (run / "circuits" / "of-an-earlier-test.svg").write_text("")
    (run / "circuits.unfinished").mkdir()  # of a test that was killed
    (run / "circuits.unfinished" / "half-a-picture.svg").write_text("")
    return measured(run, models, *TASKS, steps=2)


def circuits_of(records: Records, model: str) -> list[str]:
    return [of for of, measure in records if measure == "nodes" and of.startswith(f"{model}/")]


def folder_of(run: Path, model: str, records: Records) -> Path:
    """Return the folder of the masks that are of a model's weights."""
    wanted = records[circuits_of(records, model)[0], "nodes"].weights
    (found,) = [
        path.parent for path in (run / "circuits").rglob("masks.safetensors") if about(path)["weights"] == wanted
    ]
    return found


def about(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_every_model_has_a_folder_and_what_was_there_is_gone(run: Path, records: Records) -> None:
    assert records
    assert not (run / "circuits.unfinished").exists()
    assert len(list((run / "circuits").iterdir())) == 2
    assert len({folder_of(run, model, records) for model in NAMES}) == 2


@pytest.mark.parametrize("model", NAMES)
def test_masks_are_those_that_were_counted(model: str, run: Path, records: Records, weights: Path) -> None:
    path = folder_of(run, model, records) / "masks.safetensors"
    masks, said = load_file(path)["masks"], about(path)
    shape, name = (SHAPE, "a") if model == "wide" else (DEEP, "deep")
    own = Backbone("vit_tiny_patch16_224", weights=weights / f"{name}.safetensors", model_args=shape, num_classes=4)
    built = own.build()
    nodes = Nodes(built)
    counts = count_edges(wiring(built, nodes), masks)
    circuits = circuits_of(records, model)
    assert json.loads(said["circuits"]) == [of.removeprefix(f"{model}/").replace("/seed", ", seed") for of in circuits]
    assert said["nodes"] == str(nodes)
    for p, of in enumerate(circuits):
        assert records[of, "nodes"].weights == said["weights"]
        assert int(masks[p].sum()) == records[of, "nodes"].value
        assert int(counts.edges[p]) == records[of, "edges"].value


@pytest.mark.parametrize("model", NAMES)
def test_every_circuit_that_is_not_empty_has_a_graph_of_its_edges(model: str, run: Path, records: Records) -> None:
    folder = folder_of(run, model, records)
    masks = load_file(folder / "masks.safetensors")["masks"]
    circuits = circuits_of(records, model)
    expected = [p for p in range(len(circuits)) if masks[p].any()]
    places = sorted(path for path in folder.iterdir() if path.is_dir())
    assert [int(place.name[:3]) for place in places] == expected
    assert expected
    for place, p in zip(places, expected, strict=True):
        assert place.name[4:] == file_name(circuits[p].removeprefix(f"{model}/"))
        graph = json.loads((place / "circuit.json").read_text())
        assert len(graph["edges"]) == records[circuits[p], "edges"].value
        assert (place / "circuit.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(("target", "edges", "is_on"), [(-1, 0, True), (50, 20_000, False)])
def test_circuits_too_large_to_read_or_empty_have_no_graph_and_are_counted(
    target: int,
    edges: int,
    models: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    is_on: bool,
) -> None:
    monkeypatch.setattr(circuit_files, "EDGES", edges)
    words = (ONE, "--data.nonsense=false", "--model.target.kind=absolute", f"--model.target.value={target}")
    fit(tmp_path, models, *words, steps=1)
    measured(tmp_path, models, *words, steps=1)
    assert f"2 circuits are empty or have more than {edges:,} edges" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "circuits").rglob("*") if path.is_file()} == {"masks.safetensors"}
    for path in (tmp_path / "circuits").rglob("masks.safetensors"):
        assert set(load_file(path)["masks"].unique().tolist()) == {is_on}


def test_what_an_earlier_test_wrote_stays_until_the_new_is_whole(
    run: Path, models: dict[str, Any], records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "circuits").rglob("*")}
    assert records
    assert before

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(circuit_files, "draw_circuit", full)
        with pytest.raises((OSError, SystemExit)):
            measured(run, models, *TASKS, steps=2)
    assert {path: path.stat().st_mtime_ns for path in (run / "circuits").rglob("*")} == before


@pytest.mark.parametrize("name", ["cat or not, seed 0", "a/b", "..", "c:\\x", "x" * 200, "{1} of [2]"])
def test_file_names_are_such_that_any_file_system_takes(name: str) -> None:
    found = file_name(name)
    assert re.fullmatch(r"[A-Za-z0-9-]{0,60}", found)
    assert not found.startswith("-")


def test_names_that_differ_in_a_sign_have_folders_of_their_own(weights: Path, tmp_path: Path) -> None:
    models = {name: backbone(weights / f"{file}.safetensors") for name, file in (("v1.0", "a"), ("v1-0", "b"))}
    words = (ONE, "--data.nonsense=false")
    fit(tmp_path, models, *words, steps=1)
    measured(tmp_path, models, *words, steps=1)
    assert len(list((tmp_path / "circuits").rglob("masks.safetensors"))) == 2
