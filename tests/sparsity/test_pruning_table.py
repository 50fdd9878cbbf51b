"""The table of `scripts/pruning_table.py` is measured once, and goes on where it was."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the script, with a small experiment in place of its own."""
    spec = importlib.util.spec_from_file_location("pruning_table", ROOT / "scripts" / "pruning_table.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pruning_table", module)  # data classes look for it
    spec.loader.exec_module(module)
    cells = [module.Cell("wanda", "2:4", 0.5)]
    monkeypatch.setattr(module, "GROUPS", [cells])
    monkeypatch.setattr(module, "CALIBRATION", 4)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    noise = torch.randint(256, (170, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for number, pixels in enumerate(noise):
        folder = tmp_path / "images" / ("test" if number < 20 else "train") / str(number % 10)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_a_unit_is_measured_once_and_another_set_up_again(table: Any, root: Path, tmp_path: Path) -> None:
    weights = tmp_path / "dense.safetensors"
    experiment = table.Experiment(str(root), weights, tmp_path / "out", images=130, test_images=20)
    args = experiment.recipe["model"]["init_args"]["backbone"]["model_args"]
    args |= {"embed_dim": 16, "depth": 1}
    words = [f"--model.backbone.model_args={json.dumps(args)}"]
    save_file(table.Backbone("vit_tiny_patch16_224", model_args=args, num_classes=10).build().state_dict(), weights)
    fit, calls = table.cli.main, []

    def smaller(given: list[str]) -> None:
        calls.append(given)
        fit([*given, *words, "--trainer.precision=32-true"])

    table.cli.main = smaller
    try:
        for _ in range(2):
            table.run(experiment, 1)
    finally:
        table.cli.main = fit
    assert len(calls) == 1
    (unit,) = (tmp_path / "out" / "units").iterdir()
    measured = json.loads(unit.read_text())
    assert (measured["method"], measured["achieved"], measured["seed"]) == ("wanda", 0.5, 0)
    assert list(table.table(experiment, 1))[2].startswith("| wanda | 2:4 | 50.0% |")
    other = table.Experiment(str(root), weights, tmp_path / "out", images=140, test_images=20)
    vars(other)["recipe"] = experiment.recipe
    assert not other.unit(table.GROUPS[0][0], 0).exists()


def test_the_interval_is_students(table: Any) -> None:
    assert table.spread([0.5]) == "50.0"
    assert table.spread([0.5, 0.6, 0.7]) == "60.0 ± 24.8"  # 4.303 * 0.1 / sqrt(3)
