"""A test leaves every number of every image, curves, maps and pictures; and nothing of an earlier one."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from impact_lightning.attribution.lit_attribution import METHODS
from impact_lightning.training.map_files import MapFiles
from tests.attribution.runs import CHEAP, N, backbone, measured, records_of

GRID = 4


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_model_has_its_files(two: Path) -> None:
    assert {path.name for path in (two / "attribution").iterdir()} == {"a", "b"}
    for model in ("a", "b"):
        assert {path.name for path in (two / "attribution" / model).iterdir()} == {
            *(
                "scores.csv",
                "curves.safetensors",
                "maps.safetensors",
                "thumbnails.safetensors",
                "curves.png",
                "gallery.png",
            )
        }


@pytest.mark.parametrize("model", ["a", "b"])
def test_scores_of_images_have_the_means_of_the_records(model: str, two: Path) -> None:
    found, records = lines(two / "attribution" / model / "scores.csv"), records_of(two)
    assert [(line["method"], int(line["row"])) for line in found] == [(name, i) for name in METHODS for i in range(N)]
    for method in METHODS:
        own = [line for line in found if line["method"] == method]
        for measure in own[0].keys() - {"row", "method"}:
            values = [float(line[measure]) for line in own if line[measure]]
            record = records[f"{model}/{method}", measure]
            assert len(values) == record.n
            mean = sum(values) / len(values) if values else math.nan
            assert mean == pytest.approx(record.value, rel=1e-5, abs=1e-6, nan_ok=True), (method, measure)


def test_curves_stand_beside_their_fractions(two: Path) -> None:
    found = load_file(two / "attribution" / "a" / "curves.safetensors")
    kinds = {
        *("patch/morf", "patch/lerf", "patch/random", "patch/insertion", "rise/insertion", "rise/deletion"),
        *("chefer/positive", "chefer/negative", "road/morf", "road/lerf", "groups/groups"),
    }
    assert found.keys() == {f"{first}/{kind}" for first in (*METHODS, "fractions") for kind in kinds}
    for kind in kinds:
        (points,) = found[f"fractions/{kind}"].shape
        assert all(found[f"{method}/{kind}"].shape == (N, points) for method in METHODS)
    scores = [line for line in lines(two / "attribution" / "a" / "scores.csv") if line["method"] == "legrad"]
    y, x = found["legrad/patch/morf"].double(), found["fractions/patch/morf"]
    areas = ((y[:, 1:] + y[:, :-1]) / 2 * x.diff()).sum(1).tolist()
    assert [float(line["patch_morf_auc"]) for line in scores] == pytest.approx(areas, rel=1e-5)


def test_maps_of_the_gallery_are_kept(two: Path) -> None:
    found = {model: load_file(two / "attribution" / model / "maps.safetensors") for model in ("a", "b")}
    rows = {key.split("/")[0] for key in found["a"]}
    assert len(rows) == 4
    assert found["a"].keys() == found["b"].keys() == {f"{row}/{method}" for row in rows for method in METHODS}
    for maps in found["a"].values():
        assert maps.shape == (GRID, GRID)
    scores = lines(two / "attribution" / "a" / "scores.csv")
    for line in scores:
        if line["row"] in rows:
            own = found["a"][f"{line['row']}/{line['method']}"]
            assert (own == own[0, 0]).all().item() == (line["constant_map"] == "1")


def test_pictures_show_something(two: Path) -> None:
    for model in ("a", "b"):
        for name in ("curves", "gallery"):
            with Image.open(two / "attribution" / model / f"{name}.png") as picture:
                assert np.asarray(picture.convert("RGB")).std() > 10


def test_files_of_an_earlier_test_go(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*CHEAP, "--data.n_test=2")
    measured(tmp_path, {"first": backbone(weights / "a.safetensors")}, *words)
    measured(tmp_path, {"second": backbone(weights / "a.safetensors")}, *words)
    assert [path.name for path in (tmp_path / "attribution").iterdir()] == ["second"]
    assert f"maps, curves and scores of every image: {tmp_path / 'attribution'}" in capsys.readouterr().out


def test_other_modules_leave_nothing(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, fast_dev_run=False, default_root_dir=str(tmp_path))
    other: Any = object()
    MapFiles().on_test_end(trainer, other)
    assert not list(tmp_path.iterdir())
