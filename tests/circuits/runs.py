"""Runs of the command line on models so small that a fit takes a second."""

import json
from pathlib import Path
from typing import Any

import torch

from impact_lightning.cli import main
from impact_lightning.results import Record, read_results
from tests.data.pictures import write_folders

SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
DEEP: dict[str, Any] = {**SHAPE, "embed_dim": 8, "depth": 2}
SCENES = (
    *("--data.data=SceneData", "--data.data.source=Rooms", "--data.data.source.size=16", "--data.data.label=[shape]"),
    *("--data.data.n_train=120", "--data.data.n_val=1", "--data.data.n_test=60", "--data.data.eval_batch_size=8"),
    *("--data.train_images=6", "--data.select_images=4", "--data.report_images=4"),
)
QUIET = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false")
FEW = (
    *("--model.learning.batch=4", "--model.mean_images=24", "--model.random_circuits=20"),
    *("--model.permuted_weights=false", "--trainer.log_every_n_steps=1"),
)
ONE = '--data.tasks=[{"readout": "rest", "classes": [1]}]'
STEPS = 6

Records = dict[tuple[str, str], Record]


def backbone(path: Path | None, shape: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a model as a configuration has it."""
    of = {"name": "vit_tiny_patch16_224", "model_args": shape or SHAPE}
    return of if path is None else {**of, "weights": str(path)}


def words_of(
    verb: str,
    run: Path,
    models: Path | dict[str, Any],
    *more: str,
    data: tuple[str, ...] = SCENES,
    steps: int = STEPS,
) -> list[str]:
    """Return the words of a command line; a path is that of one model, `tiny`."""
    named = {"tiny": backbone(models)} if isinstance(models, Path) else models
    model = ["--model=LitCircuit", f"--model.models={json.dumps(named)}", *FEW]
    limits = [f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1"]
    return [verb, f"--dir={run}", *model, "--data=TaskData", *data, *QUIET, *limits, *more]


def fit(run: Path, models: Path | dict[str, Any], *more: str, **others: Any) -> None:
    main(words_of("fit", run, models, *more, **others))


def measured(run: Path, models: Path | dict[str, Any], *more: str, **others: Any) -> Records:
    main(words_of("test", run, models, "--ckpt_path=last", *more, **others))
    return records_of(run)


def records_of(run: Path) -> Records:
    return {(record.of, record.measure): record for record in read_results(run / "results.json")}


def state(run: Path, name: str = "last") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def assert_same(run: Path, reference: Path) -> None:
    """Compare what was learnt, bit for bit."""
    ours, theirs = state(run), state(reference)
    assert ours["global_step"] == theirs["global_step"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    different = [
        k
        for k, value in ours["state_dict"].items()
        if not value.equal(theirs["state_dict"][k])
        and not torch.allclose(value, theirs["state_dict"][k], rtol=0, atol=0, equal_nan=True)  # nan: not known yet
    ]
    assert not different


def assert_close(run: Path, reference: Path) -> None:
    """Compare what was learnt, but for the order of sums."""
    ours, theirs = (state(one)["state_dict"] for one in (run, reference))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6, msg=name)


def folders(root: Path, counts: dict[str, int] | None = None) -> tuple[str, ...]:
    """Write images of two classes, and return the words that name them."""
    for split in ("train", "test"):
        write_folders(root / "data" / split, counts or {"cat": 12, "dog": 12})
    return (
        *("--data.data=ImageData", f"--data.data.root={root / 'data'}", "--data.data.preprocess.size=16"),
        *("--data.train_images=4", "--data.select_images=2", "--data.report_images=4"),
    )
