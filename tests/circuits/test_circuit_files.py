"""A test leaves masks, graphs, pictures and top images, in a folder for each model."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from impact_lightning.backbones import Backbone
from impact_lightning.circuits.edges import count_edges, wiring
from impact_lightning.circuits.graph import read_json
from impact_lightning.circuits.learner import Circuit
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.task_data import TaskData
from impact_lightning.circuits.tasks import Task
from impact_lightning.circuits.tops import report_rows
from impact_lightning.cli import main
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.data.thumbnail_file import read_thumbnails
from impact_lightning.training import circuit_files
from impact_lightning.training.circuit_files import file_name
from impact_lightning.types import Key
from tests.circuits.runs import DEEP, ONE, SHAPE, Records, backbone, fit, measured, words_of
from tests.circuits.test_tops import values_of
from tests.training.test_resume import on_two_ranks

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


def test_empty_circuits_have_no_graph_and_are_counted(
    models: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (ONE, "--data.nonsense=false", "--model.target.kind=absolute", "--model.target.value=50")
    fit(tmp_path, models, *words, steps=1)
    measured(tmp_path, models, *words, steps=1)
    assert "2 circuits are empty: no graph of them is written" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "circuits").rglob("*") if path.is_file()} == {"masks.safetensors"}
    for path in (tmp_path / "circuits").rglob("masks.safetensors"):
        assert not load_file(path)["masks"].any()


def test_of_a_large_circuit_the_heaviest_part_is_written(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(circuit_files, "EDGES", 40)
    words = (ONE, "--data.nonsense=false", "--model.target.kind=absolute", "--model.target.value=-1")
    fit(tmp_path, models, *words, steps=1)
    measured(tmp_path, models, *words, steps=1)
    assert "2 circuits have more than 40 edges: their graphs hold the 40 heaviest" in capsys.readouterr().out
    folders = [path.parent for path in (tmp_path / "circuits").rglob("circuit.json")]
    assert len(folders) == 2
    for folder in folders:
        graph = read_json(folder / "circuit.json")
        masks = load_file(folder.parent / "masks.safetensors")["masks"]
        assert masks.all()
        assert len(graph.edges) == 40
        assert graph.size.nodes == masks.shape[1]
        tops = json.loads((folder / "tops.json").read_text())
        assert {int(i) for i in tops["nodes"]} == {node.id for node in graph.nodes}
        assert len(load_file(folder.parent / "thumbnails.safetensors")) > 0


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


# ---------------------------------------------------------------------------------------------------------- top images


def tops_of(place: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place / "tops.json").read_text())
    return content


def scenes() -> TaskData:
    """Return the tasks and images of the run."""
    rooms = SceneData(Rooms(size=16), label=["shape"], n_train=120, n_val=1, n_test=60, eval_batch_size=8)
    tasks = [Task("pair", (0, 2)), Task("rest", (1,))]
    data = TaskData(rooms, tasks, nonsense=False, train_images=6, select_images=4, report_images=4)
    data.setup("test")
    return data


@pytest.mark.parametrize("model", NAMES)
def test_every_graph_has_the_top_images_of_its_nodes(model: str, run: Path, records: Records, weights: Path) -> None:
    folder, data, seen = folder_of(run, model, records), scenes(), set[int]()
    shape, name = (SHAPE, "a") if model == "wide" else (DEEP, "deep")
    own = Backbone("vit_tiny_patch16_224", weights=weights / f"{name}.safetensors", model_args=shape, num_classes=4)
    built = own.build().eval().requires_grad_(False)
    (means,) = (run / "means").glob(f"{records[circuits_of(records, model)[0], 'nodes'].weights}*")
    constants = load_file(means)["sums"].mean(0) / 24  # images: --model.mean_images
    images, places = data.images["report"], sorted(path for path in folder.iterdir() if path.is_dir())
    for place, of_task in zip(places, images.images, strict=True):
        content, graph = tops_of(place), json.loads((place / "circuit.json").read_text())
        assert (content["grid"], content["prefix"], content["model"]) == ([2, 2], 1, "whole")
        assert list(content["nodes"]) == list(content["constants"]) == [str(node[0]) for node in graph["nodes"]]
        x, rows = values_of(built, images[of_task.rows]), report_rows(data)[of_task.rows].tolist()
        for node, found in content["nodes"].items():
            constant = content["constants"][node]
            assert constant == near(float(constants[int(node)]))
            assert_are_tops(found, x[..., int(node)], rows, constant)
            seen |= {one["row"] for one in found}
    thumbnails = read_thumbnails(folder / "thumbnails.safetensors")
    assert thumbnails.rows.tolist() == sorted(seen)
    assert thumbnails.data == data.fingerprint("report")
    assert torch.equal(thumbnails.images[:1], scene(data, thumbnails.rows[0]))


def assert_are_tops(found: list[dict[str, Any]], x: Tensor, rows: list[int], constant: float) -> None:
    """Compare what a file says of a node with its values `(N, T)` on the images of some rows."""
    strength = (x - constant).abs().amax(1)
    at = [rows.index(one["row"]) for one in found]
    assert len(set(at)) == len(at) == min(8, len(rows))
    assert strength[at].tolist() == near(strength.sort(descending=True).values[: len(at)].tolist())
    for i, one in zip(at, found, strict=True):
        assert one["value"] == near(float(x[i, one["token"]]))
        assert abs(one["value"] - constant) == near(float(strength[i]))
        assert one["map"] == pytest.approx(x[i, 1:].tolist(), abs=2e-3 * float(x.abs().max()))


def near(value: Any) -> Any:
    return pytest.approx(value, rel=1e-4, abs=1e-4)


def scene(data: TaskData, row: Tensor) -> Tensor:
    """Return a test image as one sees it, `(1, h, w, 3)`."""
    return data.data.split("test").__getitems__([Key(0, int(row))]).batch.images.permute(0, 2, 3, 1)


def test_two_ranks_write_the_top_images_of_one(
    run: Path, models: dict[str, Any], records: Records, tmp_path: Path
) -> None:
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    words = words_of("test", tmp_path, models, *TASKS, checkpoint, "--trainer.devices=2", steps=2)
    on_two_ranks(lambda: main(words))
    assert records
    names = {path.relative_to(run) for path in (run / "circuits").rglob("*")}
    assert {path.relative_to(tmp_path) for path in (tmp_path / "circuits").rglob("*")} == names
    for name in names:
        if name.name == "tops.json":
            assert rows_of(tmp_path / name) == rows_of(run / name)
        if name.name == "thumbnails.safetensors":
            ours, theirs = read_thumbnails(tmp_path / name), read_thumbnails(run / name)
            assert torch.equal(ours.rows, theirs.rows)
            assert torch.equal(ours.images, theirs.images)


def rows_of(path: Path) -> dict[str, list[int]]:
    return {node: [one["row"] for one in found] for node, found in tops_of(path.parent)["nodes"].items()}


def test_learnt_constants_have_top_images_too(weights: Path, tmp_path: Path) -> None:
    words = (ONE, "--data.nonsense=false", "--model.learning.ablation=learned", "--model.seeds=[0, 1]", *TASKS[2:])
    fit(tmp_path, weights / "a.safetensors", *words, steps=1)
    measured(tmp_path, weights / "a.safetensors", *words, steps=1)
    assert [len(tops_of(path.parent)["nodes"]) for path in (tmp_path / "circuits").rglob("tops.json")] == [132, 132]


def test_a_circuit_is_compared_with_its_own_constants() -> None:
    circuits = [Circuit(task, seed) for task in (0, 1) for seed in (5, 7)]
    learner: Any = SimpleNamespace(circuits=circuits)
    found: Any = SimpleNamespace(validated=[SimpleNamespace(task=1)], seeds=[7])
    learnt = torch.randn(4, 1, 3)
    assert torch.equal(circuit_files._constants(found, learner, learnt, 0), learnt[3])
    assert torch.equal(circuit_files._constants(found, learner, learnt[0], 0), learnt[0])
