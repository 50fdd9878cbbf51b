"""The tables of `scripts/` are measured once, and go on where they were."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


@pytest.fixture
def fits(scripts: None, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The fits that are run."""
    study = importlib.import_module("sparsity_study")
    calls, main = list[list[str]](), study.cli.main

    def counted(given: list[str]) -> None:
        calls.append(given)
        main(given)

    monkeypatch.setattr(study.cli, "main", counted)
    return calls


@pytest.fixture
def root(tmp_path: Path) -> Path:
    noise = torch.randint(256, (170, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for number, pixels in enumerate(noise):
        folder = tmp_path / "images" / ("test" if number < 20 else "train") / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def small(name: str, tmp_path: Path) -> Path:
    """Write a recipe with a small model, in float32."""
    recipe = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    recipe["model"]["init_args"]["backbone"]["model_args"] |= SMALL
    recipe["trainer"]["precision"] = "32-true"
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def pruning_table(config: Path, weights: Path, root: Path | None, out: Path, images: int, monkeypatch: Any) -> Any:
    module = importlib.import_module("pruning_table")
    monkeypatch.setattr(module, "CALIBRATION", 4)
    study = module.Study(config, root and str(root), images, 20)
    cells = [[module.Cell("wanda", "2:4", 0.5)]]
    return module.PruningTable(study, str(weights), out, cells)


def test_a_unit_is_measured_once_and_another_set_up_again(
    fits: list[list[str]], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, weights = small("finetune_pruned_cifar10", tmp_path), tmp_path / "dense.safetensors"
    backbone = importlib.import_module("impact_lightning.backbones").Backbone
    args = yaml.safe_load(config.read_text())["model"]["init_args"]["backbone"]
    save_file(backbone(args["name"], model_args=args["model_args"], num_classes=10).build().state_dict(), weights)
    for _ in range(2):
        table = pruning_table(config, weights, root, tmp_path / "out", 130, monkeypatch)
        table.run(1)
    assert len(fits) == 1
    (unit,) = (tmp_path / "out" / "units").iterdir()
    measured = json.loads(unit.read_text())
    assert (measured["method"], measured["achieved"], measured["seed"]) == ("wanda", 0.5, 0)
    assert list(table.lines(1))[2].startswith("| wanda | 2:4 | 50.0% |")
    assert not list(pruning_table(config, weights, root, tmp_path / "out", 140, monkeypatch).lines(1))[2:]


def test_sparse_trainings_are_counted_and_pruned_by_seed(
    fits: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("sparse_training_table")
    study = module.Study(small("sparse_rooms", tmp_path), None, 130, 20)
    table = module.Table(study, tmp_path / "out", 1, 64, [])
    for _ in range(2):
        for method in module.METHODS:
            table.fit(method, 0.5, 1e-3, 0)
        table.fit("weight-sparse", 1.0, 1e-3, 0)
    assert len(fits) == 3
    dense, sparse, gradual = list(table.lines([1.0, 0.5], [1e-3], 1))[2:]
    assert dense.startswith("| dense | 0.0% |")
    assert sparse.startswith("| weight-sparse | 50.0% |")
    assert gradual.startswith("| gradual pruning | 50.0% |")
    weights = tmp_path / "out" / "models" / "weight-sparse-1-0.001-{seed}.ckpt"
    config = small("finetune_pruned_rooms", tmp_path)
    pruning = pruning_table(config, weights, None, tmp_path / "pruned", 130, monkeypatch)
    pruning.run(1)
    assert list(pruning.lines(1))[2].startswith("| wanda | 2:4 | 50.0% |")


def test_the_interval_is_students(scripts: None) -> None:
    spread = importlib.import_module("sparsity_study").spread
    assert spread([0.5]) == "50.0"
    assert spread([0.5, 0.6, 0.7]) == "60.0 ± 24.8"  # 4.303 * 0.1 / sqrt(3)
