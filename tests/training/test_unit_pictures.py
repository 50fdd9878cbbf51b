"""A test of units leaves thumbnails: examples of every class, and what units respond to."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from impact_lightning.backbones import Backbone
from impact_lightning.data.labels import labels_of
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.data.thumbnail_file import read_thumbnails
from impact_lightning.training import unit_pictures
from impact_lightning.training.unit_pictures import shown_rows
from tests.neurons.test_lit_neurons import SETTINGS, SHAPE, measure, model_of

N = 60


def module_of(*tops: list[list[int]]) -> Any:
    """Return what was measured of models: the top images of their units."""
    data = SceneData(Rooms(size=16), label=["shape"], n_train=4, n_val=4, n_test=N)
    data.setup("test")
    measures = {str(i): SimpleNamespace(top=SimpleNamespace(images=torch.tensor(rows))) for i, rows in enumerate(tops)}
    return SimpleNamespace(data=data, measures=measures)


def test_every_class_has_its_first_images_and_every_unit_its_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_pictures, "EXAMPLES", 2)
    module = module_of([[50, 51], [52, -1]], [[53, 54]])
    labels = labels_of(module.data, "test")
    examples = [row for c in range(4) for row in (labels == c).nonzero().flatten()[:2].tolist()]
    assert shown_rows(module)[:8] == examples
    assert [row for row in shown_rows(module) if row >= 50] == [50, 52, 53, 51, 54]
    monkeypatch.setattr(unit_pictures, "ROWS", 9)
    assert shown_rows(module) == [*examples, 50]
    monkeypatch.setattr(unit_pictures, "CLASSES", 1)
    assert shown_rows(module)[:2] == examples[:2]
    assert examples[2] not in shown_rows(module)


def test_a_test_writes_thumbnails(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(Backbone("vit_tiny_patch16_224", model_args=SHAPE, num_classes=4).build().state_dict(), path)
    measure(tmp_path, [model_of("dense", path)], *SETTINGS)
    found = read_thumbnails(tmp_path / "neurons" / "thumbnails.safetensors")
    assert set(found.labels) == {0, 1, 2, 3}
    assert found.images.shape[1:] == (16, 16, 3)
