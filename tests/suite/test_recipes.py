"""The recipes of `impact`: each is planned to the last unit; the paper's setting runs to the end as a miniature."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import yaml
from PIL import Image
from safetensors.torch import save_file

from impact_lightning.cli import main
from impact_lightning.suite import estimate
from impact_lightning.suite.outcome import read_outcome
from tests.suite.test_impact_command import ENV

DEIT = Path("configs/impact_deit3_base.yaml")


def pictures(root: Path, classes: int, splits: dict[str, int], size: int = 8) -> Path:
    """Return class folders of noise."""
    rng = np.random.default_rng(0)
    for split, n in splits.items():
        for label in range(classes):
            folder = root / split / f"n{label:04d}"
            folder.mkdir(parents=True)
            for number in range(n):
                Image.fromarray(rng.integers(256, size=(size, size, 3), dtype=np.uint8)).save(folder / f"{number}.jpg")
    return root


@pytest.mark.parametrize(
    ("recipe", "classes", "splits", "units"),
    [
        ("configs/quickstart.yaml", 0, {}, 37),
        ("configs/cifar10_impact.yaml", 10, {"train": 26, "test": 1}, 26),
        (str(DEIT), 1000, {"train": 1, "val": 1}, 233),
    ],
)
def test_a_recipe_is_planned_to_the_last_unit(
    recipe: str,
    classes: int,
    splits: dict[str, int],
    units: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(estimate, "_apart", lambda function, *args: 1e-3)  # a test process has threads: no fork
    root = ["--data.root", str(pictures(tmp_path / "pictures", classes, splits))] if classes else []
    main(["impact", "--config", recipe, *root, "--out", str(tmp_path / "run"), "--dry_run"])
    said = capsys.readouterr().out
    assert f"{units} units, 0 of them done" in said
    assert not (tmp_path / "run").exists()


def small(config: dict[str, Any], weights: Path, root: Path) -> dict[str, Any]:
    """Return the paper's setting with few classes, steps and channels; every unit of it is still there."""
    few = {"max_steps": 2, "max_epochs": -1}
    config["data"]["init_args"] |= {"root": str(root), "batch_size": 8, "eval_batch_size": 8, "workers": 0}
    config["data"]["init_args"]["preprocess"] = {"size": 32}
    config["backbone"] |= {"model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2}}
    config["models"]["dense"]["init_args"] = {"weights": str(weights)}
    kept = {"dense": config["models"]["dense"], "dense_ft": config["models"]["dense_ft"]}
    for name in ("wanda50", "magnitude70", "random30"):
        kept[name] = config["models"][name]
        kept[name]["init_args"]["options"] = {"images": 8}
    config["models"] = kept
    config["models"]["dense_ft"]["init_args"]["training"]["trainer"] |= few  # shared by all fine-tunes
    levels = config["levels"]
    levels["neurons"]["model"]["settings"] |= {"impact_images": 2, "bins": 16, "k": 8}
    levels["sae"]["model"] |= {"expansions": [2]}
    levels["sae"]["model"]["kinds"][0]["init_args"] = {"k": 4}
    levels["sae"]["data"] |= {"batch_size": 8, "image_batch_size": 4, "buffer_images": 8}
    levels["sae"] |= {"seeds": [0, 1], "trainer": few}
    levels["sae"]["extract"] = {"batch_size": 8}
    levels["circuits"]["model"] |= {"seeds": [0], "mean_images": 8}
    levels["circuits"]["model"]["learning"]["batch"] = 4
    sizes = {"train_images": 4, "select_images": 2, "report_images": 2}
    levels["circuits"]["data"] |= {**sizes, "tasks": levels["circuits"]["data"]["tasks"][:2]}
    levels["circuits"]["trainer"] = few
    levels["attribution"]["model"] |= {"sanity_images": 2, "gallery_images": 2}
    levels["attribution"]["images"] = {"limit": 2}
    config["trainer"] = {"accelerator": "cpu", "log_every_n_steps": 1}
    config["jobs"] = 2
    return config


@pytest.mark.slow
def test_the_setting_of_the_paper_runs_to_the_end_as_a_miniature(tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures", 4, {"train": 12, "val": 4}, size=32)
    name = "deit3_base_patch16_224"
    model = timm.create_model(name, img_size=32, patch_size=8, embed_dim=32, num_heads=2, num_classes=4)
    save_file(model.state_dict(), tmp_path / "random.safetensors")
    config = small(yaml.safe_load(DEIT.read_text()), tmp_path / "random.safetensors", root)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["impact", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "impact_lightning", *words], capture_output=True, text=True, env=ENV, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outcome = read_outcome(tmp_path / "run" / "results.json")
    assert {unit.state for unit in outcome.units} == {"done"}
    assert len(outcome.models) == 5
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
