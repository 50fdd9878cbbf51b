"""The feature browser: what comes into the page, and what is said of what does not."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from impact_lightning.data.thumbnail_file import read_thumbnails
from impact_lightning.report import features
from impact_lightning.report.sprites import Album
from impact_lightning.sae.features import write_features
from impact_lightning.suite.outcome import Outcome
from tests.report.conftest import (
    DICTIONARY,
    LATENTS,
    MODELS,
    NAMES,
    PATCHES,
    TOP,
    make_description,
    make_features,
)

SHOWN = TOP * len(NAMES)  # images that any latent shows


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, to be damaged."""
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def dictionary(folder: Path) -> Path:
    return folder / "sae" / MODELS[0] / "test" / "features" / DICTIONARY


def test_it_shows_the_latents_that_fire(outcome: Outcome, run_folder: Path) -> None:
    made = features.section(outcome, run_folder)
    assert made.gaps == ()
    assert [(one["model"], one["name"]) for one in made.data["dictionaries"]] == [
        (model, DICTIONARY) for model in MODELS
    ]
    one, known = made.data["dictionaries"][0], make_features(0)
    assert one["latent"] == list(range(1, LATENTS))
    assert one["label"] == known.label[1:].tolist()
    assert one["numbers"]["purity"][:4] == [None] * 4
    assert one["numbers"]["density"] == pytest.approx(known.density[1:].tolist(), rel=1e-3)
    assert one["neighbours"][0] == [(2, 0.5), (0, 0.25)]


def test_maps_are_bytes_of_the_patches(outcome: Outcome, run_folder: Path) -> None:
    one = features.section(outcome, run_folder).data["dictionaries"][0]
    shown = np.frombuffer(base64.b64decode(one["maps"]), np.uint8).reshape(LATENTS - 1, TOP, PATCHES**2)
    known = make_features(0).map[1:, :, 1:].double().numpy()
    largest = known.max((1, 2), keepdims=True)
    assert one["grid"] == (PATCHES, PATCHES)
    assert np.abs(shown / 254 - known / largest).max() < 0.003


def test_pictures_are_in_the_section_unless_they_are_shared(outcome: Outcome, run_folder: Path) -> None:
    album = Album()
    shared = features.section(outcome, run_folder, album)
    alone = features.section(outcome, run_folder)
    assert "pictures" not in shared.data
    assert alone.data["pictures"]["rows"] == [row for _, row in album.used]
    assert sorted(alone.data["pictures"]["rows"]) == list(range(SHOWN))  # each once, though both models show them


def test_the_page_says_which_latents_it_leaves_out(
    outcome: Outcome, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "KEPT", 10)
    made = features.section(outcome, run_folder)
    known = make_features(0)
    best = known.same_label[1:].argsort(descending=True)[:10] + 1
    assert made.data["dictionaries"][0]["latent"] == sorted(best.tolist())
    assert "more than 10 latents fire" in made.html


def test_embeddings_decide_where_they_were_measured() -> None:
    known = make_features(0)._replace(alike=torch.arange(LATENTS, dtype=torch.float64))
    assert features.choose(known, 3) == ([57, 58, 59], LATENTS - 1)


def test_fewer_maps_are_held_where_there_is_less_room(
    outcome: Outcome, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MAP_ROOM", 2 * (LATENTS - 1) * PATCHES**2 * 2)
    one = features.section(outcome, run_folder).data["dictionaries"][0]
    assert one["mapped"] == 2
    assert len(base64.b64decode(one["maps"])) == 2 * (LATENTS - 1) * PATCHES**2


def test_there_are_no_maps_without_patches(outcome: Outcome, folder: Path) -> None:
    cls_only = make_description()._replace(tokens=[0])
    write_features(dictionary(folder), make_features(0)._replace(map=torch.ones(LATENTS, TOP, 1).half()), cls_only)
    one = features.section(outcome, folder).data["dictionaries"][0]
    assert (one["grid"], one["mapped"], one["maps"]) == (None, 0, "")


def test_patches_without_a_token_are_not_measured(outcome: Outcome, folder: Path) -> None:
    some = make_description()._replace(tokens=[0, 1, 16])
    write_features(dictionary(folder), make_features(0)._replace(map=torch.ones(LATENTS, TOP, 3).half()), some)
    one = features.section(outcome, folder).data["dictionaries"][0]
    assert list(base64.b64decode(one["maps"])[:16]) == [254, *[255] * 14, 254]


@pytest.mark.parametrize("name", ["features.safetensors", "thumbnails.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_file_is_a_gap(outcome: Outcome, folder: Path, name: str, damage: str) -> None:
    path = dictionary(folder) / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\0" * 64)
    made = features.section(outcome, folder)
    assert len(made.gaps) == 1
    assert name in made.gaps[0]
    assert str(folder) not in made.gaps[0]
    is_shown = name == "thumbnails.safetensors"
    assert [one["model"] for one in made.data["dictionaries"]] == (MODELS if is_shown else MODELS[1:])


def test_an_image_without_a_picture_has_its_place(outcome: Outcome, folder: Path) -> None:
    for model in MODELS:
        (folder / "sae" / model / "test" / "features" / DICTIONARY / "thumbnails.safetensors").unlink()
    pictures = features.section(outcome, folder).data["pictures"]
    assert pictures["cells"] == [None] * SHOWN
    assert len(pictures["rows"]) == SHOWN


def test_a_missing_folder_and_a_failed_unit_are_gaps(outcome: Outcome, folder: Path) -> None:
    shutil.rmtree(folder / "sae")
    made = features.section(outcome, folder)
    assert made.data is None
    assert [MODELS[0] in made.gaps[0], MODELS[1] in made.gaps[1]] == [True, True]
    assert "no features" in made.html


def test_names_are_escaped(outcome: Outcome, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "KEPT", 1)
    write_features(dictionary(folder), make_features(0), make_description()._replace(name=NAMES[1]))
    html = features.section(outcome, folder).html
    assert NAMES[1] not in html


def test_it_is_json(outcome: Outcome, run_folder: Path) -> None:
    json.dumps(features.section(outcome, run_folder).data, allow_nan=False)


def test_the_pictures_are_those_of_the_files(outcome: Outcome, run_folder: Path) -> None:
    album = Album()
    album.learn(known := read_thumbnails(dictionary(run_folder) / "thumbnails.safetensors"))
    assert (album.known[known.data, 5].picture == known.images[5].numpy()).all()  # type: ignore[union-attr]  # bool array
