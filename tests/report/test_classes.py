"""The class pages: what comes into the page, and what is said of what does not."""

import base64
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from impact_lightning.report import classes, features
from impact_lightning.report.sprites import Album
from impact_lightning.suite.outcome import Outcome
from tests.report.conftest import IMAGES, MODELS, NAMES, PATCHES


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, to be damaged."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def test_it_names_the_classes(outcome: Outcome, run_folder: Path) -> None:
    made = classes.section(outcome, run_folder)
    assert made.gaps == ()
    assert made.data["names"] == NAMES
    assert made.data["models"] == MODELS


def test_names_come_from_neurons_where_there_are_no_features(outcome: Outcome, folder: Path) -> None:
    shutil.rmtree(folder / "sae")
    assert classes.section(outcome, folder).data["names"] == NAMES


def test_accuracy_is_that_of_the_class(outcome: Outcome, run_folder: Path) -> None:
    assert classes.section(outcome, run_folder).data["accuracy"] == {"dense": {1: 0.75}}


def test_units_are_those_that_tell_the_class_best(outcome: Outcome, run_folder: Path) -> None:
    data = classes.section(outcome, run_folder).data
    found = data["units"][MODELS[0]]
    assert [unit[1] for unit in found[0]] == [36, 32, 28, 24, 20, 16, 12, 8]
    assert found[0][1][:6] == ["blocks.1.neurons", 32, 0.82, 0.25, 1.0, NAMES[0]]
    assert [data["pictures"]["rows"][picture] for picture in found[3][0][6]] == [3, 7]
    assert [unit[1] for unit in found[3]][-1] == 7  # the unit without an AUROC comes after all others


def test_examples_are_pictures_of_the_class(outcome: Outcome, run_folder: Path) -> None:
    data = classes.section(outcome, run_folder).data
    assert set(data["examples"]) == set(range(len(NAMES)))
    for label, pictures in data["examples"].items():
        assert {data["pictures"]["labels"][picture] for picture in pictures} == {label}


def test_maps_are_by_image_model_and_method(outcome: Outcome, run_folder: Path) -> None:
    data = classes.section(outcome, run_folder).data
    found = data["maps"][1]
    assert data["methods"] == ["grad_cam", "rollout"]
    assert len(found) == 2 * 2 * 2  # images, models, methods
    assert {data["pictures"]["rows"][one[0]] for one in found} == {1, 5}
    assert all(one[4:] == [PATCHES, PATCHES] for one in found)
    assert len(base64.b64decode(data["map_bytes"])) == 8 * 2 * 2 * PATCHES**2


def test_it_holds_the_pictures_of_all_viewers_once(outcome: Outcome, run_folder: Path) -> None:
    album = Album()
    features.section(outcome, run_folder, album)
    pictures = classes.section(outcome, run_folder, album).data["pictures"]
    assert sorted(pictures["rows"]) == list(range(IMAGES))


FILES = [
    "neurons/neurons/thumbnails.safetensors",
    "neurons/neurons/models/dense/units.csv",
    "neurons/neurons/models/dense/units.safetensors",
    "attribution/attribution/dense/maps.safetensors",
    "attribution/attribution/dense/thumbnails.safetensors",
]


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_file_is_a_gap(outcome: Outcome, folder: Path, path: str, damage: str) -> None:
    content = (folder / path).read_bytes()
    (folder / path).unlink()
    if damage != "missing":
        (folder / path).write_bytes(content[: len(content) // 2] if damage == "cut" else b"\0" * 64)
    made = classes.section(outcome, folder)
    assert len(made.gaps) == 1
    assert Path(path).name in made.gaps[0]
    assert str(folder) not in made.gaps[0]
    assert made.data["names"] == NAMES


@pytest.mark.parametrize("change", [("auroc_best", "auroc"), ("0.5", "half"), ("layer", "place")])
def test_a_table_of_another_form_is_a_gap(outcome: Outcome, folder: Path, change: tuple[str, str]) -> None:
    path = folder / FILES[1]
    path.write_text(path.read_text().replace(*change, 1))
    made = classes.section(outcome, folder)
    assert len(made.gaps) == 1
    assert set(made.data["units"]) == {MODELS[1]}


def test_without_any_level_it_says_so(outcome: Outcome, tmp_path: Path) -> None:
    made = classes.section(replace(outcome, units=[]), tmp_path)
    assert made.gaps == ()
    assert made.data["names"] == []
    assert "no classes" in made.html
