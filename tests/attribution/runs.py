"""Runs of the command line on models so small that a test takes seconds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from impact_lightning.backbones import Backbone
from impact_lightning.cli import main
from impact_lightning.results import Record, read_results
from tests.data.pictures import write_folders

SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
N = 11  # three batches, the last of them smaller
SCENES = (
    *("--data=SceneData", "--data.source=Rooms", "--data.source.size=16", "--data.label=[shape]"),
    *("--data.n_train=1", "--data.n_val=1", f"--data.n_test={N}", "--data.eval_batch_size=4"),
)
QUIET = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false")
FEW = ("--model.sanity_images=3", "--model.gallery_images=4")
CHEAP = ("--model.methods={gradient: GradientTimesInput, raw: RawAttention}", "--model.protocols=[Patch]", *FEW)

Records = dict[tuple[str, str], Record]


def save_model(path: Path, n_classes: int, *, seed: int = 0, name: str = "vit_tiny_patch16_224", **shape: Any) -> Path:
    """Write the weights of a model whose branches matter, and return the file."""
    torch.manual_seed(seed)
    model = Backbone(name, model_args={**SHAPE, **shape}, num_classes=n_classes).build()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    save_file(model.state_dict(), path)
    return path


def backbone(path: Path, *, name: str = "vit_tiny_patch16_224", **shape: Any) -> dict[str, Any]:
    """Return a model as a configuration has it."""
    return {"name": name, "weights": str(path), "model_args": {**SHAPE, **shape}}


def words_of(
    run: Path, models: Path | dict[str, Any], *more: str, data: tuple[str, ...] = SCENES, verb: str = "test"
) -> list[str]:
    """Return the words of a command line; a path is that of one model, `tiny`."""
    named = {"tiny": backbone(models)} if isinstance(models, Path) else models
    model = ("--model=LitAttribution", f"--model.models={json.dumps(named)}")
    return [verb, f"--dir={run}", *model, *data, *QUIET, *more]


def measured(run: Path, models: Path | dict[str, Any], *more: str, **others: Any) -> Records:
    main(words_of(run, models, *more, **others))
    return records_of(run)


def records_of(run: Path) -> Records:
    return {(record.of, record.measure): record for record in read_results(run / "results.json")}


def assert_same(found: Records, expected: Records) -> None:
    """Compare all numbers of two runs, but for the rounding of forwards of other batches."""
    assert found.keys() == expected.keys()
    for key, record in expected.items():
        mine = found[key]
        assert mine.value == number(record.value), key
        assert (mine.n, mine.weights, mine.data, mine.notes) == (record.n, record.weights, record.data, record.notes)
        assert (mine.interval is None) == (record.interval is None), key
        if mine.interval is not None and record.interval is not None:
            assert mine.interval.low == number(record.interval.low), key
            assert mine.interval.high == number(record.interval.high), key
        assert (mine.null and number(mine.null.value)) == (record.null and record.null.value), key


def number(value: float) -> Any:
    """Return something that nan equals too."""
    return pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True)  # float32 in batches of other sizes


def folders(root: Path, counts: dict[str, int]) -> tuple[str, ...]:
    """Write images of some classes, and return the words that read them."""
    for split in ("train", "test"):
        write_folders(root / split, counts)
    return ("--data=ImageData", f"--data.root={root}", "--data.preprocess.size=16", "--data.eval_batch_size=4")
