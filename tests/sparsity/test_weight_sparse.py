"""A weight-sparse training has its exact counts at every moment, and is otherwise an ordinary training."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from impact_lightning import cli
from impact_lightning.backbones import Backbone, fingerprint
from impact_lightning.backbones.abs_topk import ActivationTopK
from impact_lightning.backbones.classifier import LitClassifier
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.sparsity import read_masks, read_protocol
from impact_lightning.sparsity.density_schedule import DensitySchedule
from impact_lightning.sparsity.keep_masks import found_masks
from impact_lightning.sparsity.weight_sparse import WeightSparse
from impact_lightning.training.checkpoint import AtomicCheckpointIO, Checkpoint
from impact_lightning.types import UserError
from tests.training.test_resume import CONFIG, NO_DRAWS, in_a_process, killed_fit_of, losses, on_two_ranks

ARGS: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
STEPS = 16  # 64 images in batches of 8, two epochs
MATRICES = [f"blocks.{i}.{name}.weight" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
Spy = Callable[[Trainer, LitClassifier], None]


class AfterBatch(Callback):
    def __init__(self, spy: Spy) -> None:
        self.spy = spy

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LitClassifier)
        self.spy(trainer, pl_module)


def train(folder: Path, *callbacks: Callback, topk: ActivationTopK | None = None, **settings: Any) -> LitClassifier:
    """Train for 16 steps from the same start."""
    data = SceneData(Rooms(size=16), ["shape"], n_train=64, n_val=16, n_test=16, batch_size=8, eval_batch_size=8)
    torch.manual_seed(0)
    backbone = Backbone("vit_tiny_patch16_224", model_args=ARGS, activation_topk=topk)
    module = LitClassifier(backbone, n_classes=data.n_classes, **settings)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=2,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == STEPS
    return module


def zeros_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() == 0 for name, parameter in model.named_parameters()}


def counts_of(model: nn.Module) -> dict[str, int]:
    return {name: int(parameter.count_nonzero()) for name, parameter in model.named_parameters()}


# -------------------------------------------------------------------------------------------------- every step


@pytest.mark.parametrize("regrow", [True, False])
def test_the_count_is_exact_after_every_step(regrow: bool, tmp_path: Path) -> None:
    schedule, seen = DensitySchedule(0.125, "linear", 0.0, 0.5), []

    def spy(trainer: Trainer, module: LitClassifier) -> None:
        density = schedule.density(trainer.global_step, STEPS)
        seen.append(density)
        counts = counts_of(module.model)
        shapes = {name: p.numel() for name, p in module.model.named_parameters()}
        sparse = dict.fromkeys(MATRICES, 1.0) | {"patch_embed.proj.weight": 4.0, "head.weight": 4.0}
        for name, multiple in sparse.items():  # exact in binary: eighths and sixteenths
            assert counts[name] == int(min(1.0, multiple * density) * shapes[name]), name
        assert counts["pos_embed"] == shapes["pos_embed"]

    train(tmp_path, WeightSparse(0.125, min_alive=0, regrow=regrow), AfterBatch(spy))
    assert len(seen) == STEPS
    assert seen[0] < 1
    assert set(seen[7:]) == {0.125}


def test_every_neuron_and_channel_keeps_its_least(tmp_path: Path) -> None:
    def spy(_: Trainer, module: LitClassifier) -> None:
        for block in module.model.blocks:
            layers: Any = block
            for rows in (layers.attn.qkv.weight, layers.mlp.fc1.weight):
                assert int(rows.count_nonzero(dim=1).min()) >= 2
            for columns in (layers.attn.proj.weight, layers.mlp.fc2.weight):
                assert int(columns.count_nonzero(dim=0).min()) >= 2

    module = train(tmp_path, WeightSparse(0.1, end=0.2, min_alive=2), AfterBatch(spy))
    assert counts_of(module.model)["blocks.0.mlp.fc1.weight"] == int(0.1 * 96 * 24)


def test_weights_come_back_only_where_they_may(tmp_path: Path) -> None:
    returned: dict[bool, int] = {}  # a step of the optimiser has to exceed the threshold
    for regrow in (True, False):
        before: dict[str, Tensor] = {}
        returned[regrow] = 0

        def spy(_: Trainer, module: LitClassifier, before: dict[str, Tensor] = before, regrow: bool = regrow) -> None:
            zeros = zeros_of(module.model)
            returned[regrow] += sum(int((before[name] & ~zeros[name]).sum()) for name in MATRICES if before)
            before.update(zeros)

        train(
            tmp_path / str(regrow),
            WeightSparse(0.5, course="cubic", min_alive=0, regrow=regrow),
            AfterBatch(spy),
            lr=0.03,
        )
    assert returned[True] > 0
    assert returned[False] == 0


def test_the_learning_rate_is_the_base_value_at_full_sparsity(tmp_path: Path) -> None:
    class Rates(Callback):
        def __init__(self) -> None:
            self.rates: list[float] = []
            self.between: list[float] = []

        def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
            self.rates.append(optimizer.param_groups[0]["lr"])

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.between.append(trainer.optimizers[0].param_groups[0]["lr"])

    with_fin, without = Rates(), Rates()
    train(tmp_path / "a", WeightSparse(0.25, min_alive=0), with_fin)
    train(tmp_path / "b", without)
    schedule = DensitySchedule(0.25)
    fins = [(0.25 / schedule.density(step, STEPS)) ** 0.5 for step in range(STEPS)]
    assert with_fin.rates == pytest.approx([rate * fin for rate, fin in zip(without.rates, fins, strict=True)])
    assert with_fin.rates[8:] == without.rates[8:]
    assert with_fin.between == without.between  # what a checkpoint stores is the ordinary rate


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_density_one_is_ordinary_training_bit_for_bit(ema_decay: float | None, tmp_path: Path) -> None:
    ordinary = train(tmp_path / "a", ema_decay=ema_decay).state_dict()
    dense = train(tmp_path / "b", WeightSparse(1.0), ema_decay=ema_decay).state_dict()
    assert ordinary.keys() == dense.keys()
    assert all(torch.equal(dense[name], value) for name, value in ordinary.items())


def test_gradients_and_moments_stay_dense(tmp_path: Path) -> None:
    def spy(trainer: Trainer, module: LitClassifier) -> None:
        weight = module.model.get_parameter("blocks.0.mlp.fc1.weight")
        counts.append(int(trainer.optimizers[0].state[weight]["exp_avg"].count_nonzero()))

    counts: list[int] = []
    train(tmp_path, WeightSparse(0.1, min_alive=0), AfterBatch(spy))
    assert min(counts) > 0.9 * 96 * 24


def test_weights_and_activations_are_sparse_together(tmp_path: Path) -> None:
    module = train(tmp_path, WeightSparse(0.2, min_alive=0), topk=ActivationTopK())
    assert counts_of(module.model)["blocks.1.mlp.fc2.weight"] == int(0.2 * 96 * 24)


# ---------------------------------------------------------------------------------- the average of the weights


def test_the_average_is_sparse_in_evaluations_and_at_the_end_and_dense_in_between(tmp_path: Path) -> None:
    class Evaluations(Callback):
        counts: list[int]

        def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            assert isinstance(pl_module, LitClassifier)
            assert pl_module.ema is not None
            self.counts.append(counts_of(pl_module.ema.module)["blocks.0.mlp.fc1.weight"])

    def spy(trainer: Trainer, module: LitClassifier) -> None:
        assert module.ema is not None
        between.append(counts_of(module.ema.module)["blocks.0.mlp.fc1.weight"])

    between: list[int] = []
    evaluations = Evaluations()
    evaluations.counts = []
    module = train(
        tmp_path, WeightSparse(0.1, end=0.4, min_alive=0), AfterBatch(spy), evaluations, ema_decay=0.9, lr=0.01
    )
    assert module.ema is not None
    assert evaluations.counts == [230] * 4  # two epochs of two batches
    assert min(between) > 230
    assert counts_of(module.ema.module)["blocks.0.mlp.fc1.weight"] == 230


def test_an_average_that_is_looked_at_is_not_changed(tmp_path: Path) -> None:
    class Look(Callback):
        def __init__(self, sparse: WeightSparse) -> None:
            self.sparse = sparse

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            checkpoint = {"state_dict": pl_module.state_dict()}
            self.sparse.on_save_checkpoint(trainer, pl_module, checkpoint)
            self.sparse.on_validation_start(trainer, pl_module)
            self.sparse.on_validation_end(trainer, pl_module)

    alone = train(tmp_path / "a", WeightSparse(0.1, min_alive=0), ema_decay=0.9).state_dict()
    sparse = WeightSparse(0.1, min_alive=0)
    watched = train(tmp_path / "b", sparse, Look(sparse), ema_decay=0.9).state_dict()
    assert all(torch.equal(watched[name], value) for name, value in alone.items())


# -------------------------------------------------------------------------------- interruptions, ranks, the CLI


def fit(run: Path, *more: str) -> None:
    overlay = CONFIG.parent / "weight_sparse.yaml"
    words = [f"--config={CONFIG}", f"--config={overlay}", f"--dir={run}", "--ckpt_path=last"]
    cli.main(["fit", *words, *more])


def checkpoint_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return content


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sparse")
    assert in_a_process(lambda: fit(run)) == 0
    return run


def lines_of(run: Path) -> list[dict[str, str]]:
    with (run / "density.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_checkpoint_holds_the_exact_counts(uninterrupted: Path) -> None:
    content = checkpoint_of(uninterrupted)
    for prefix in ("model.", "ema.module."):
        state = {name.removeprefix(prefix): v for name, v in content["state_dict"].items() if name.startswith(prefix)}
        assert int(state["blocks.0.mlp.fc1.weight"].count_nonzero()) == 230
        assert int(state["patch_embed.proj.weight"].count_nonzero()) == int(0.4 * 24 * 192)
        assert int(state["head.weight"].count_nonzero()) == state["head.weight"].numel()
    assert int(content["dense_average"]["blocks.0.mlp.fc1.weight"].count_nonzero()) > 230


@pytest.mark.parametrize(("step", "hook"), [(3, "before the step"), (7, "in validation"), (16, "after the step")])
def test_a_kill_changes_nothing(step: int, hook: str, tmp_path: Path, uninterrupted: Path) -> None:
    often = "--checkpoint.every_n_steps=1"
    in_a_process(killed_fit_of(lambda: fit(tmp_path, often), step, hook))
    assert checkpoint_of(tmp_path)["global_step"] in (step - 1, step)
    assert in_a_process(lambda: fit(tmp_path)) == 0
    ours, theirs = checkpoint_of(tmp_path), checkpoint_of(uninterrupted)
    for part in ("state_dict", "dense_average"):
        assert ours[part].keys() == theirs[part].keys()
        assert not [name for name in ours[part] if not torch.equal(ours[part][name], theirs[part][name])]
    assert lines_of(tmp_path) == lines_of(uninterrupted)


def test_two_ranks_have_the_weights_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert in_a_process(lambda: fit(one, *NO_DRAWS)) == 0
    on_two_ranks(lambda: fit(two, *NO_DRAWS, "--trainer.devices=2"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    ours, theirs = checkpoint_of(two)["state_dict"], checkpoint_of(one)["state_dict"]
    for name in ours:
        if ours[name].is_floating_point():
            assert torch.equal(ours[name] == 0, theirs[name] == 0), name
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_the_densities_of_all_tensors_are_told(uninterrupted: Path) -> None:
    lines = lines_of(uninterrupted)
    steps = sorted({int(line["step"]) for line in lines})
    assert steps == list(range(22))
    fc1 = [line for line in lines if line["tensor"] == "blocks.0.mlp.fc1.weight"]
    assert [int(line["nonzeros"]) for line in fc1] == [
        int(2304 * DensitySchedule(0.1).density(step, 21) + 1e-9) for step in steps
    ]
    assert {line["rule"] for line in lines if line["tensor"] in ("head.weight", "cls_token")} == {"dense"}
    assert len(lines) == 22 * len({line["tensor"] for line in lines})
    with (uninterrupted / "logs" / "version_0" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["sparsity/density"]]
    assert len(logged) == 21
    assert float(logged[-1]["sparsity/lr"]) == float(logged[-1]["train/lr"])
    assert float(logged[0]["sparsity/lr"]) < float(logged[0]["train/lr"])
    sparse = [line for line in lines if line["step"] == "21" and line["rule"] != "dense"]
    nonzeros, numel = (sum(int(line[column]) for line in sparse) for column in ("nonzeros", "numel"))
    assert float(logged[-1]["sparsity/density"]) == pytest.approx(nonzeros / numel)


def test_what_is_sparse_and_what_stays_dense_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, WeightSparse(0.1, min_alive=0, dense=["blocks.1.*"]))
    said = capsys.readouterr().out
    assert "patch_embed.proj.weight, head.weight end at density 0.4" in said
    assert "blocks.*.mlp.fc1.weight, blocks.*.mlp.fc2.weight end at density 0.1" in said
    assert "dense stay cls_token, pos_embed, patch_embed.proj.bias, blocks.*.norm1.weight (2)" in said
    assert "0.0998  230 of 2,304 weights of blocks.*.mlp.fc1.weight" in said


def test_a_checkpoint_is_tested_and_predicted_as_it_is(
    uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = f"--ckpt_path={uninterrupted / 'checkpoints' / 'last.ckpt'}"
    configs = [f"--config={CONFIG}", f"--config={CONFIG.parent / 'weight_sparse.yaml'}"]
    for verb in ("test", "predict"):
        cli.main([verb, *configs, f"--dir={tmp_path}", best])
    assert (tmp_path / "results.json").exists()
    weights = Backbone(
        "vit_tiny_patch16_224", weights=uninterrupted / "checkpoints" / "last.ckpt", model_args=ARGS, num_classes=4
    )
    assert counts_of(weights.build())["blocks.0.mlp.fc1.weight"] == 230


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("callback", "settings", "message"),
    [
        ({"density": 0.1, "min_alive": 4}, {}, "min_alive 4 of 72 units needs 288: raise density or lower min_alive"),
        ({"multiples": {"blocks.9.*": 1.0}}, {}, r"no weights are named 'blocks\.9\.\*'"),
        ({"multiples": {"head": 0.0}}, {}, "must be positive"),
        ({"min_alive": -1}, {}, "must not be negative"),
        ({"density": 2.0}, {}, r"density 2\.0"),
    ],
)
def test_what_cannot_be_sparse_is_refused(
    callback: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(tmp_path, WeightSparse(**callback), **settings)


def test_frozen_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(Backbone("vit_tiny_patch16_224", model_args=ARGS, num_classes=4).build().state_dict(), path)
    data = SceneData(Rooms(size=16), ["shape"], n_train=64, n_val=16, n_test=16, batch_size=8)
    module = LitClassifier(
        Backbone("vit_tiny_patch16_224", weights=path, model_args=ARGS), n_classes=4, train_only=["head"]
    )
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", callbacks=[WeightSparse(0.5)], logger=False, max_epochs=1
    )
    with pytest.raises(UserError, match=r"is frozen by model\.train_only"):
        trainer.fit(module, datamodule=data)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"precision": "16-mixed"}, "16-mixed scales"), ({"strategy": object()}, "object cuts up")],
)
def test_trainers_that_hide_gradients_or_weights_are_refused(change: dict[str, Any], message: str) -> None:
    module = LitClassifier(Backbone("vit_tiny_patch16_224", model_args=ARGS), n_classes=4)
    trainer: Any = SimpleNamespace(
        **{"precision": "32-true", "strategy": SingleDeviceStrategy(), "callbacks": []} | change
    )
    with pytest.raises(UserError, match=message):
        WeightSparse(0.5).setup(trainer, module, "fit")


def test_the_best_checkpoint_is_one_of_a_model_with_the_density(tmp_path: Path) -> None:
    """Of all that are validated before, none is what was asked for, however good."""
    callback, seen = WeightSparse(0.125, min_alive=0), []

    class Metric(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.callback_metrics["falling"] = torch.tensor(-float(trainer.global_step))
            seen.append((trainer.global_step, callback.is_unfinished))

    checkpoint = Checkpoint(tmp_path / "checkpoints", monitor="falling")
    data = SceneData(Rooms(size=16), ["shape"], n_train=64, n_val=16, n_test=16, batch_size=8, eval_batch_size=8)
    module = LitClassifier(Backbone("vit_tiny_patch16_224", model_args=ARGS), n_classes=data.n_classes)
    Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=2,
        val_check_interval=2,
        callbacks=[Metric(), callback, checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        plugins=[AtomicCheckpointIO()],
    ).fit(module, datamodule=data)
    assert seen == [(step, step < 8) for step in range(2, 17, 2)]  # the density is reached after half of 16 steps
    assert checkpoint.best_step == 8
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    fc1 = state["model.blocks.0.mlp.fc1.weight"]
    assert int(fc1.count_nonzero()) == fc1.numel() // 8


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_sparse_model_is_written_for_timm_and_keeps_its_zeros(tmp_path: Path, ema: float | None) -> None:
    module = train(tmp_path, WeightSparse(0.125, min_alive=0), ema_decay=ema)
    path = tmp_path / "sparse.safetensors"
    assert fingerprint(module.evaluated) == read_protocol(path)["weights"]
    masks = read_masks(path)
    assert set(MATRICES) < set(masks)
    assert read_protocol(path)["achieved"]["blocks.0.mlp.fc1.weight"] == 0.875
    again = Backbone("vit_tiny_patch16_224", model_args=ARGS, weights=path, num_classes=module.n_classes)
    kept, _ = found_masks(again)
    assert all(torch.equal(kept[name], mask) for name, mask in masks.items())
