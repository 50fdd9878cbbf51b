"""A test leaves tables and pictures of every latent, a fit a table of densities; neither is ever doubled or half."""

import csv
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from impact_lightning import cli
from impact_lightning.backbones import Backbone
from impact_lightning.data.pictures import RGB
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.data.thumbnail_file import read_thumbnails
from impact_lightning.metrics.density import log_histogram
from impact_lightning.sae import BatchTopK
from impact_lightning.sae.features import read_features
from impact_lightning.sae.gallery import WIDTH
from impact_lightning.sae.lit_sae import LitSAE
from impact_lightning.training import feature_pictures
from impact_lightning.training.feature_pictures import COLUMNS, FeaturePictures, add_densities, rows_of
from tests.sae.test_gallery import make_description, make_features

CONFIG = Path(__file__).parents[1] / "conf" / "sae.yaml"
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
ONE = ("--model.kinds=[{class_path: BatchTopK, init_args: {k: 3}}]", "--model.seeds=[0]")
NAME = "blocks.1.resid_post/0-BatchTopK-x2-s0"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(Backbone("vit_tiny_patch16_224", model_args={**SMALL}, num_classes=4).build().state_dict(), path)
    return path


def run(verb: str, folder: Path, weights: Path, *more: str) -> None:
    given = (f"--dir={folder}", f"--data.backbone.weights={weights}", "--data.sites=[blocks.1.resid_post]")
    cli.main([verb, f"--config={CONFIG}", *ONE, *given, *more])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    run("fit", folder, weights)
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------------------------------------------- densities


def test_a_fit_has_one_line_of_densities_a_validation(fitted: Path) -> None:
    found = lines(fitted / "features" / NAME / "density.csv")
    assert [line["step"] for line in found] == ["20", "40"]  # 64 images of 5 tokens in batches of 16, twice
    assert list(found[0])[:3] == ["step", "-8.0", "-7.9"]
    assert len(found[0]) == 81
    assert all(0 < sum(int(n) for edge, n in line.items() if edge != "step") <= 48 for line in found)


def test_a_run_that_goes_back_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "density.csv"
    for step, n in ((10, 1), (20, 2), (30, 3), (20, 4), (20, 5)):
        add_densities(path, step, torch.full((80,), n))
    assert [(line["step"], line["-0.1"]) for line in lines(path)] == [("10", "1"), ("20", "5")]
    assert [file.name for file in path.parent.iterdir()] == ["density.csv"]


# ----------------------------------------------------------------------------------------------------------- features


def test_a_test_leaves_tables_and_pictures(fitted: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("test", fitted, weights, "--ckpt_path=last")
    folder = fitted / "features" / NAME
    assert {path.name for path in folder.iterdir()} == {
        *("density.csv", "density.svg", "features.csv", "features.safetensors", "top_features.png"),
        "thumbnails.safetensors",
    }
    features, _ = read_features(folder)
    found = lines(folder / "features.csv")
    assert list(found[0]) == list(COLUMNS)
    assert [float(line["density"]) for line in found] == pytest.approx(features.density.tolist(), rel=1e-5)
    assert [int(line["images"]) for line in found] == features.class_counts.sum(1).tolist()
    shown = {row for row in features.image[features.density > 0, :8].flatten().tolist() if row >= 0}
    assert set(read_thumbnails(folder / "thumbnails.safetensors").rows.tolist()) == shown
    tops = [line["top_images"].split(" | ")[0] for line in found]
    assert tops == [str(row) if row >= 0 else "" for row in features.image[:, 0].tolist()]
    with Image.open(folder / "top_features.png") as picture:
        assert picture.width == WIDTH
        assert np.asarray(picture.convert("RGB")).std() > 10  # not blank
    assert "features of every dictionary" in capsys.readouterr().out


def test_top_images_of_latents_that_fire_have_thumbnails(tmp_path: Path) -> None:
    rooms = SceneData(Rooms(size=16), label=["shape"], n_train=4, n_val=4, n_test=30)
    rooms.setup("test")
    data: Any = SimpleNamespace(data=rooms)
    images = torch.stack([torch.arange(10), torch.arange(10, 20), torch.arange(20, 30)])
    images[0, 3:] = -1
    features, path = make_features([0.5, 0.0, 0.25], image=images), tmp_path / "thumbnails.safetensors"
    feature_pictures._write_thumbnails(path, features, data, {})
    assert read_thumbnails(path).rows.tolist() == [0, 1, 2, *range(20, 28)]  # eight of each that fires
    whole = read_thumbnails(path)
    known: dict[int, RGB] = {}
    feature_pictures._write_thumbnails(path, features, data, known)
    feature_pictures._write_thumbnails(path, features, data, known)  # those at hand are not read again
    assert set(known) == {0, 1, 2, *range(20, 28)}
    assert torch.equal(read_thumbnails(path).images, whole.images)
    data.data = None
    feature_pictures._write_thumbnails(path, features, data, known)
    assert not path.exists()


def test_a_rehearsal_writes_nothing(tmp_path: Path, weights: Path) -> None:
    run("fit", tmp_path, weights, "--trainer.fast_dev_run=1")
    assert not (tmp_path / "features").exists()


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    module = LitSAE([partial(BatchTopK, k=3)])
    module.features["site"] = make_features([0.1]), make_description()
    module.densities["site"] = torch.ones(80)
    trainer: Any = SimpleNamespace(is_global_zero=False, fast_dev_run=False, default_root_dir=str(tmp_path))
    FeaturePictures().on_validation_end(trainer, module)
    FeaturePictures().on_test_end(trainer, module)
    assert not list(tmp_path.iterdir())


def test_a_table_names_what_it_can_and_leaves_the_rest_empty() -> None:
    features = make_features(
        [0.5, 0.0],
        label=torch.tensor([1, -1]),
        purity=torch.tensor([0.75, torch.nan], dtype=torch.float64),
        image=torch.tensor([[4, 7, -1], [-1, -1, -1]]),
        neighbour=torch.tensor([[1], [0]]),
        neighbour_cosine=torch.tensor([[0.25], [0.25]]),
        lens_class=torch.tensor([[0, 1], [1, 0]]),
    )
    images = SimpleNamespace(sample_name=lambda split, row: f"{split}/{row}.jpg")
    data: Any = SimpleNamespace(data=images, frozen=SimpleNamespace(model=SimpleNamespace(num_classes=2)))
    description = make_description("site", 'a "cat"', "dog")
    first, second = rows_of(features, description, data)
    assert first == [*(0, 0.5, 3, "dog", 0.75, None, None, None, 'a "cat" | dog', "1 0.250", "test/4.jpg | test/7.jpg")]
    assert second[3:8] == [None] * 5
    assert second[-1] == ""
    data.data, data.frozen.model.num_classes = None, 1000  # no images, and a model of other classes
    assert rows_of(features, description, data)[0][-3:] == ["0 | 1", "1 0.250", "4 | 7"]


def test_cached_activations_have_tables_but_no_pictures(
    fitted: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = json.dumps(
        {"name": "vit_tiny_patch16_224", "weights": str(weights), "num_classes": 4, "model_args": SMALL}
    )
    rooms = json.dumps(
        {
            "class_path": "SceneData",
            "init_args": {
                "source": {"class_path": "Rooms", "init_args": {"size": 16}},
                **{"label": ["shape"], "n_train": 16, "n_val": 16, "n_test": 16},
            },
        }
    )
    cli.main(
        [
            *("extract", f"--out={tmp_path / 'shards'}", f"--backbone={backbone}", f"--data={rooms}"),
            *("--sites=[blocks.1.resid_post]", "--split=test", "--device=cpu"),
        ]
    )
    shards = tmp_path / "shards"
    config = tmp_path / "cached.yaml"
    config.write_text(
        f"model: {{class_path: LitSAE, init_args: {{kinds: [{{class_path: BatchTopK, init_args: {{k: 3}}}}], "
        "expansions: [2]}}\n"
        f"data: {{class_path: CachedActivations, init_args: {{train: {shards}, val: {shards}, test: {shards}, "
        "batch_size: 8}}\n"
        "trainer: {accelerator: cpu, devices: 1, enable_progress_bar: false}\n"
    )
    checkpoint = f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}"
    capsys.readouterr()
    folder = tmp_path / "run" / "features" / NAME
    folder.mkdir(parents=True)
    for name in ("top_features.png", "thumbnails.safetensors"):
        (folder / name).write_bytes(b"of an earlier test")
    cli.main(["test", f"--config={config}", f"--dir={tmp_path / 'run'}", checkpoint])
    assert {path.name for path in folder.iterdir()} == {"density.svg", "features.csv", "features.safetensors"}
    assert "LiveActivations" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- W&B


def test_wandb_offline_has_histograms_and_a_table_with_strips(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))  # where pictures of tables wait for `wandb sync`
    logged: list[dict[str, Any]] = []
    original = wandb.Run.log

    def watched(self: Any, data: dict[str, Any], *more: Any, **named: Any) -> None:
        logged.append(data)
        original(self, data, *more, **named)

    monkeypatch.setattr(wandb.Run, "log", watched)
    run("fit", tmp_path, weights, "--trainer.logger=WandbLogger")
    wandb.finish()
    run("test", tmp_path, weights, "--trainer.logger=WandbLogger", "--ckpt_path=last")
    wandb.finish()
    found = [(data["trainer/global_step"], data[key]) for data in logged if (key := f"val/{NAME}/density") in data]
    assert [step for step, _ in found] == [20, 40]
    with (tmp_path / "features" / NAME / "density.csv").open() as file:
        assert list(map(int, list(csv.reader(file))[1][1:])) == list(found[0][1].histogram)
    end = next(data for data in logged if f"features/{NAME}" in data)
    features, _ = read_features(tmp_path / "features" / NAME)
    assert list(end[f"test/{NAME}/density"].histogram) == log_histogram(features.density).tolist()
    table = end[f"features/{NAME}"]
    assert table.columns == [*COLUMNS, "images_and_maps"]
    assert 0 < len(table.data) <= 50
    assert all(isinstance(row[-1], wandb.Image) for row in table.data)
    sheet = next((tmp_path / "wandb").glob("offline-run-*/files/media/images/test/**/*.png"))
    assert sheet.read_bytes() == (tmp_path / "features" / NAME / "top_features.png").read_bytes()
    waiting = [path for path in (tmp_path / "data").glob("**/*") if path.is_file()]
    assert len(waiting) >= len({row[-1]._sha256 for row in table.data})
