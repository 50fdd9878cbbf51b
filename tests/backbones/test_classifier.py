"""The classifier trains what it says, decays what it should, and refuses weights that do not fit."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from safetensors.torch import save_file

from impact_lightning.backbones import Backbone
from impact_lightning.backbones.classifier import LitClassifier, Mixing, warmup_cosine
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.training.checkpoint import AtomicCheckpointIO
from impact_lightning.types import ImageBatch, UserError

BACKBONE = Backbone(
    "vit_tiny_patch16_224", model_args={"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
)


def scenes() -> SceneData:
    return SceneData(Rooms(size=16), ["shape"], n_train=32, n_val=8, n_test=8, batch_size=8, eval_batch_size=8)


def trainer(tmp_path: Path, **more: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        log_every_n_steps=1,
        plugins=[AtomicCheckpointIO()],
        **{"max_epochs": 1, **more},
    )


def images(n: int) -> ImageBatch:
    generator = torch.Generator().manual_seed(0)
    return ImageBatch(
        torch.randn(n, 3, 16, 16, generator=generator),
        torch.randint(4, (n,), generator=generator),
        torch.arange(n),
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(replace(BACKBONE, num_classes=4).build().state_dict(), path)
    return path


# ---------------------------------------------------------------------------------------------------- schedule


def test_the_learning_rate_rises_to_its_peak_and_ends_at_its_floor() -> None:
    rates = [warmup_cosine(step, warmup=10, total=110, floor=0.1) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))


def test_no_warmup_starts_at_the_peak_and_a_longer_run_stays_at_the_floor() -> None:
    assert warmup_cosine(0, warmup=0, total=10, floor=0.0) == 1.0
    assert warmup_cosine(99, warmup=0, total=10, floor=0.25) == 0.25


# ---------------------------------------------------------------------------------------------------- training


def test_only_matrices_decay(tmp_path: Path) -> None:
    model = LitClassifier(BACKBONE, n_classes=4, weight_decay=0.125)
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(model, scenes())
    groups = fit.optimizers[0].param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    named = dict(model.model.named_parameters())
    assert decays.keys() == {id(parameter) for parameter in named.values()}
    for name, parameter in named.items():
        exempt = parameter.ndim == 1 or name in ("pos_embed", "cls_token")
        assert decays[id(parameter)] == (0.0 if exempt else 0.125), name


def test_the_loss_is_the_smoothed_cross_entropy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LitClassifier(BACKBONE, n_classes=4, label_smoothing=0.2)
    monkeypatch.setattr(model, "_log_loss", lambda *_: None)
    batch = images(6)
    logits = model.model(batch.images)
    target = torch.full((6, 4), 0.05)
    target[range(6), batch.labels] = 0.85
    by_hand = -(target * F.log_softmax(logits, 1)).sum(1).mean()
    torch.testing.assert_close(model.training_step(batch, 0), by_hand)


def test_mixing_an_odd_batch_is_refused(tmp_path: Path) -> None:
    model = LitClassifier(BACKBONE, n_classes=4, mixing=Mixing())
    odd = SceneData(Rooms(size=16), ["shape"], n_train=32, n_val=8, n_test=8, batch_size=5)
    with pytest.raises(UserError, match="batch_size 5"):
        trainer(tmp_path).fit(model, odd)


def test_mixing_goes_on_without_an_image_whose_partner_was_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LitClassifier(BACKBONE, n_classes=4, mixing=Mixing())
    monkeypatch.setattr(model, "_log_loss", lambda *_: None)
    assert torch.isfinite(model.training_step(images(5), 0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0},
        {"betas": (0.9, 2.0)},
        {"ema_decay": 2.0},
        {"label_smoothing": 3.0},
        {"warmup_steps": -1},
        {"eps": 0.0},
    ],
)
def test_a_setting_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"model.{next(iter(wrong))} is out of range"):
        LitClassifier(BACKBONE, n_classes=4, **wrong)


def test_mixing_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="mixing"):
        Mixing(mixup=0.0, cutmix=0.0)


def test_the_average_follows_every_step_and_is_what_is_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = LitClassifier(BACKBONE, n_classes=4, ema_decay=0.75, lr=0.01)
    history = [model.model.head.weight.detach().clone()]

    original = model.optimizer_step

    def step(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        history.append(model.model.head.weight.detach().clone())

    model.optimizer_step = step
    trainer(tmp_path, max_steps=4).fit(model, scenes())
    average = history[1]  # torch's AveragedModel begins with the weights after the first step
    for weight in history[2:]:
        average = 0.75 * average + 0.25 * weight
    assert model.ema is not None
    torch.testing.assert_close(model.ema.module.head.weight, average)
    assert model.evaluated is model.ema.module


def test_a_loss_that_is_not_finite_ends_the_run_with_a_cure(tmp_path: Path) -> None:
    model: Any = LitClassifier(BACKBONE, n_classes=4)
    with torch.no_grad():
        model.model.head.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"lower model\.lr"):
        trainer(tmp_path).fit(model, scenes())


# -------------------------------------------------------------------------------------------------- evaluation


def test_a_test_counts_what_a_loop_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = LitClassifier(BACKBONE, n_classes=4).eval(), scenes()
    trainer(tmp_path).test(model, data, verbose=False)
    hits, losses = 0, []
    with torch.no_grad():
        for batch in data.test_dataloader():
            logits = model(data.on_after_batch_transfer(batch, 0).images)
            hits += int((logits.argmax(1) == batch.labels).sum())
            losses += F.cross_entropy(logits, batch.labels, reduction="none").tolist()
    values = {record.measure: record.value for record in model.records}
    assert values == pytest.approx({"top1": hits / 8, "loss": sum(losses) / 8, "weight_density": 1.0}, abs=1e-6)


# ------------------------------------------------------------------------------------------------- checkpoints


def checkpoint_of(model: LitClassifier, tmp_path: Path) -> Path:
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(model, scenes())
    fit.save_checkpoint(tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"


def test_frozen_parts_stay_as_they_were_and_out_of_the_checkpoint(tmp_path: Path, weights: Path) -> None:
    backbone = replace(BACKBONE, weights=weights)
    model: Any = LitClassifier(backbone, n_classes=4, train_only=["head"])
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    path = checkpoint_of(model, tmp_path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert set(saved) == {"model.head.weight", "model.head.bias"}
    after = model.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}

    other: Any = LitClassifier(backbone, n_classes=4, train_only=["head"])
    trainer(tmp_path).validate(other, scenes(), ckpt_path=path, verbose=False)
    assert torch.equal(other.model.head.weight, model.model.head.weight)


def test_other_frozen_weights_are_refused(tmp_path: Path, weights: Path) -> None:
    path = checkpoint_of(LitClassifier(replace(BACKBONE, weights=weights), 4, train_only=["head"]), tmp_path)
    save_file(replace(BACKBONE, num_classes=4).build().state_dict(), weights)  # other random numbers
    model = LitClassifier(replace(BACKBONE, weights=weights), 4, train_only=["head"])
    with pytest.raises(UserError, match="other frozen weights"):
        trainer(tmp_path).validate(model, scenes(), ckpt_path=path)


def test_freezing_random_weights_is_refused() -> None:
    with pytest.raises(UserError, match="freezes random weights"):
        LitClassifier(BACKBONE, n_classes=4, train_only=["head"])


def test_freezing_everything_is_refused_with_the_names_there_are(weights: Path) -> None:
    with pytest.raises(UserError, match="blocks, cls_token, head"):
        LitClassifier(replace(BACKBONE, weights=weights), n_classes=4, train_only=["haed"])


def test_the_checkpoint_holds_plain_data_and_rebuilds_the_model(tmp_path: Path) -> None:
    model = LitClassifier(BACKBONE, n_classes=4)
    path = checkpoint_of(model, tmp_path)
    again = LitClassifier.load_from_checkpoint(path, backbone=BACKBONE, weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_gradients_are_clipped_in_mixed_precision(tmp_path: Path) -> None:
    model = LitClassifier(BACKBONE, n_classes=4)
    trainer(tmp_path, precision="bf16-mixed", gradient_clip_val=1.0, max_steps=2).fit(model, scenes())
