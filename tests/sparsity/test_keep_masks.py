"""What `prune` has set to zero stays exactly zero, whatever a fit does; a count says so."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file, save_file
from torch import Tensor

from impact_lightning import cli
from impact_lightning.backbones import Backbone, fingerprint
from impact_lightning.backbones.classifier import LitClassifier
from impact_lightning.sparsity import KeepMasks, prune, read_masks, read_protocol
from impact_lightning.sparsity.pruned_file import masks_path
from impact_lightning.types import UserError
from tests.training.test_resume import CONFIG, in_a_process, killed_fit_of, on_two_ranks

MODEL: dict[str, Any] = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]["backbone"]
N_CLASSES = 4  # shapes of rooms


def backbone(weights: Path) -> Backbone:
    return Backbone(MODEL["name"], weights=weights, model_args=MODEL["model_args"], num_classes=N_CLASSES)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(MODEL["name"], num_classes=N_CLASSES, **MODEL["model_args"]).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def sparse(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "sparse.safetensors"
    prune(backbone=backbone(dense), out=path, method="magnitude", sparsity=0.7, include=["blocks.*", "patch_embed.*"])
    return path


def fit(run: Path, weights: Path, *more: str) -> None:
    words = [f"--config={CONFIG}", f"--dir={run}", "--ckpt_path=last", f"--model.backbone.weights={weights}"]
    cli.main(["fit", *words, *more])


def checkpoint(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def assert_masked(state: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    """Every removed weight is zero, without a sign, and every kept one is not."""
    for name, mask in masks.items():
        assert not state[name].signbit()[~mask].any()
        assert torch.equal(state[name] != 0, mask)


def parts(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the model and the average of its weights."""
    prefixes = ("model.", "ema.module.")
    return [{n.removeprefix(p): v for n, v in state.items() if n.startswith(p)} for p in prefixes]


@pytest.fixture(scope="module")
def uninterrupted(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    assert in_a_process(lambda: fit(run, sparse)) == 0
    return run


def test_zeros_stay_in_the_weights_their_average_and_all_that_is_written(sparse: Path, uninterrupted: Path) -> None:
    masks, before = read_masks(sparse), load_file(sparse)
    model, average = parts(checkpoint(uninterrupted)["state_dict"])
    for state in (model, average):
        assert_masked(state, masks)
        assert not any(torch.equal(state[name], before[name]) for name in masks)
    written = uninterrupted / "pruned.safetensors"
    assert fingerprint(load_file(written)) == fingerprint(average)
    assert all(torch.equal(mask, masks[name]) for name, mask in read_masks(written).items())
    timm.create_model(MODEL["name"], num_classes=N_CLASSES, **MODEL["model_args"]).load_state_dict(load_file(written))
    built = backbone(uninterrupted / "checkpoints" / "last.ckpt").build()
    assert_masked(dict(built.state_dict()), masks)


def test_the_protocol_grows_by_what_was_done(sparse: Path, uninterrupted: Path) -> None:
    before, after = read_protocol(sparse), read_protocol(uninterrupted / "pruned.safetensors")
    (done,) = after.pop("fine_tuned")
    assert done["from"] == before["weights"]
    assert (done["steps"], done["seed"], done["average"]) == (21, 0, True)
    assert {name for name in after if after[name] != before.get(name)} == {"weights"}


class Count(Callback):
    """Write what a rank has, before anything is masked at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = {name: value for name, value in pl_module.state_dict().items() if value.ndim > 1}
        counts = {name: int(value.count_nonzero()) for name, value in state.items()}
        found = {"steps": trainer.global_step, "counts": counts, "weights": fingerprint(state)}
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(found))


def assert_counted(counts: dict[str, int], sparse: Path) -> None:
    """Weights and average have as many nonzeros as the masks have places."""
    for name, mask in read_masks(sparse).items():
        assert counts[f"model.{name}"] == counts[f"ema.module.{name}"] == int(mask.sum())


def beside(callback: Callable[[], Callback], body: Callable[[], None]) -> Callable[[], None]:
    """Return `body`, a fit, with one more callback."""

    def changed() -> None:
        setattr(cli, "ResultsWriter", callback)  # noqa: B010  # in this process only
        body()

    return changed


def test_200_steps_of_two_ranks_in_mixed_precision_leave_the_counts_alone(sparse: Path, tmp_path: Path) -> None:
    more: tuple[str, ...] = (
        "--trainer.max_steps=200",
        "--trainer.max_epochs=-1",
        "--trainer.devices=2",
        "--model.mixing=null",
    )
    more += ("--trainer.precision=bf16-mixed", "--model.weight_decay=0.5")
    on_two_ranks(beside(lambda: Count(tmp_path), lambda: fit(tmp_path / "run", sparse, *more)))
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one == two
    assert one["steps"] == 200
    assert_counted(one["counts"], sparse)
    for state in parts(checkpoint(tmp_path / "run")["state_dict"]):
        assert_masked(state, read_masks(sparse))


def test_a_killed_fit_continues_as_if_it_had_not_been(sparse: Path, uninterrupted: Path, tmp_path: Path) -> None:
    body = lambda: fit(tmp_path, sparse, "--checkpoint.every_n_steps=1")  # noqa: E731
    for step in (4, 9):
        assert in_a_process(killed_fit_of(body, step)) == -signal.SIGKILL
        for state in parts(checkpoint(tmp_path)["state_dict"]):
            assert_masked(state, read_masks(sparse))
    assert in_a_process(body) == 0
    ours, theirs = checkpoint(tmp_path)["state_dict"], checkpoint(uninterrupted)["state_dict"]
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    files = (tmp_path / "pruned.safetensors", uninterrupted / "pruned.safetensors")
    assert read_protocol(files[0]) == read_protocol(files[1])


def test_a_dense_checkpoint_is_masked_again(
    dense: Path, sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = lambda: fit(tmp_path, dense, "--checkpoint.every_n_steps=1")  # noqa: E731
    assert in_a_process(killed_fit_of(body, 10)) == -signal.SIGKILL
    monkeypatch.setattr(cli, "ResultsWriter", lambda: Count(tmp_path))
    with pytest.warns(UserWarning, match="the checkpoint is dense where 9 masks are zero"):
        fit(tmp_path, sparse)
    assert_counted(json.loads((tmp_path / "0.json").read_text())["counts"], sparse)
    for state in parts(checkpoint(tmp_path)["state_dict"]):
        assert_masked(state, read_masks(sparse))


class Noise(Callback):
    """Write to all weights after each step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for parameter in pl_module.parameters():
            parameter.data.add_(0.01)


def test_what_other_callbacks_write_is_masked_before_it_is_saved(sparse: Path, tmp_path: Path) -> None:
    body = lambda: fit(tmp_path, sparse, "--trainer.max_epochs=1", "--checkpoint.every_n_steps=1")  # noqa: E731
    assert in_a_process(beside(Noise, body)) == 0
    for state in parts(checkpoint(tmp_path)["state_dict"]):
        assert all(not state[name][~mask].any() for name, mask in read_masks(sparse).items())


def test_a_fine_tuned_model_is_fine_tuned_again(sparse: Path, uninterrupted: Path, tmp_path: Path) -> None:
    for name in ("pruned.safetensors", "checkpoints/last.ckpt"):
        run = tmp_path / Path(name).stem
        assert in_a_process(lambda: fit(run, uninterrupted / name, "--trainer.max_epochs=1")) == 0  # noqa: B023
        assert len(read_protocol(run / "pruned.safetensors")["fine_tuned"]) == 2
        assert_masked(load_file(run / "pruned.safetensors"), read_masks(sparse))


def test_dense_weights_are_fitted_without_masks(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, dense, "--trainer.max_epochs=1")
    assert "masks kept" not in capsys.readouterr().out
    assert not (tmp_path / "pruned.safetensors").exists()
    assert "KeepMasks" not in checkpoint(tmp_path)["callbacks"]


def test_a_rehearsal_keeps_masks_and_writes_nothing(
    sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, sparse, "--trainer.fast_dev_run=2")
    kept = sum(int(mask.sum()) for mask in read_masks(sparse).values())
    assert f"masks kept: {kept:,} of" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ one callback


def started(weights: Path, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, **options: Any) -> Any:
    """Return a callback at the start of a fit, its module, and an optimiser."""
    module, keep = LitClassifier(backbone(weights), N_CLASSES), KeepMasks()
    step = optimizer(module.model.parameters(), **({"lr": 0.1} | options))
    data = SimpleNamespace(fingerprint=lambda _: "")
    trainer: Any = SimpleNamespace(strategy=SingleDeviceStrategy(), optimizers=[step], datamodule=data)
    keep.setup(trainer, module, "fit")
    keep.on_train_start(trainer, module)
    return keep, module, step


def test_gradients_without_bounds_are_left_out(sparse: Path) -> None:
    keep, module, step = started(sparse, momentum=0.9, weight_decay=0.1)
    masks = read_masks(sparse)
    for name, parameter in module.model.named_parameters():
        parameter.grad = torch.ones_like(parameter)
        if name in masks:
            parameter.grad[~masks[name]] = torch.inf
    keep.on_before_optimizer_step(None, module, step)
    assert all(parameter.grad.isfinite().all() for parameter in module.model.parameters())
    step.step()
    assert_masked(dict(module.model.state_dict()), masks)


def test_moments_from_before_the_masks_move_nothing(sparse: Path) -> None:
    _, module, step = started(sparse, torch.optim.AdamW)
    for parameter in module.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step.step()  # nobody has masked these gradients
    assert_masked(dict(module.model.state_dict()), read_masks(sparse))


def test_a_strategy_that_cuts_weights_up_is_refused(sparse: Path) -> None:
    module, keep = LitClassifier(backbone(sparse), N_CLASSES), KeepMasks()
    keep.setup(SimpleNamespace(), module, "fit")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="masks need whole weights, which str cuts up; use ddp"):
        keep.on_train_start(SimpleNamespace(strategy="FSDP"), module)  # type: ignore[arg-type]


def test_a_head_that_begins_anew_does_not_fit_its_mask(dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    prune(backbone=backbone(dense), out=path, method="magnitude", sparsity=0.5, include=["head"])
    for n_classes, message in ((N_CLASSES, "are not zero where it is"), (7, r"it has shape \(7, 24\)")):
        anew = Backbone(MODEL["name"], weights=path, new_head=True, model_args=MODEL["model_args"])
        module = LitClassifier(anew, n_classes)
        with pytest.raises(UserError, match=rf"the mask of head\.weight does not fit .*{message}"):
            KeepMasks().setup(SimpleNamespace(), module, "fit")  # type: ignore[arg-type]


def test_other_masks_than_those_of_the_checkpoint_are_refused(
    dense: Path, sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    prune(backbone=backbone(dense), out=other, method="random", sparsity=0.7)
    fit(tmp_path / "run", sparse, "--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", other)
    assert "the checkpoint was fitted under other masks than those of backbone.weights" in capsys.readouterr().err


def test_lost_masks_are_named(sparse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(sparse.read_bytes())
    with pytest.raises(SystemExit):
        fit(tmp_path / "run", alone)
    assert f"masks are missing beside it: copy {masks_path(alone).name} there" in capsys.readouterr().err
