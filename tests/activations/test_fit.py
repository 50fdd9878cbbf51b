"""A fit on activations that is stopped in mid-buffer and continued equals one that was not, also under Lightning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from impact_lightning.activations import ActivationBatch, ActivationDataModule, CachedActivations, LiveActivations
from impact_lightning.backbones import Backbone
from tests.activations.tiny import SITES, make_backbone, make_data, make_shards
from tests.distributed import run_distributed

SITE, STEPS = SITES[1], 20


class Linear(LightningModule):
    """Learns to reconstruct a site, and remembers every loss; asks for the number of steps before it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(24) / 2)
        self.losses: list[float] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches == STEPS  # makes the loader before the checkpoint is read
        return torch.optim.Adam([self.weight], lr=1e-2)

    def validation_step(self, batch: ActivationBatch, step: int) -> None:
        pass

    def training_step(self, batch: ActivationBatch, step: int) -> Tensor:
        x = batch.activations[SITE]
        loss = (x @ self.weight - x).square().mean()
        self.losses.append(loss.item())
        return loss


class StopAt(Linear):
    """Ends the process's fit in the middle of an epoch, after the checkpoint of a step."""

    def __init__(self, step: int, path: Path) -> None:
        super().__init__()
        self.stop, self.path = step, path

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step == self.stop:
            self.trainer.save_checkpoint(self.path)
            self.trainer.should_stop = True


def make(kind: str, backbone: Backbone, root: Path) -> ActivationDataModule:
    if kind == "cached":
        return CachedActivations(root, sites=[SITE], batch_size=12, block_rows=5, buffer_blocks=8)
    return LiveActivations(backbone, make_data(), [SITE], batch_size=12, image_batch_size=2, buffer_images=8)


def fit(model: Linear, data: ActivationDataModule, folder: Path, ckpt_path: Path | None = None) -> list[float]:
    trainer = Trainer(
        max_steps=STEPS,
        limit_val_batches=0,
        log_every_n_steps=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return model.losses


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), backbone)


@pytest.mark.parametrize("kind", ["live", "cached"])
@pytest.mark.parametrize("step", [2, 6, 11])  # in mid-buffer, at the end of an epoch, in the next
def test_stopped_and_continued_equals_uninterrupted(
    tmp_path: Path, backbone: Backbone, root: Path, kind: str, step: int
) -> None:
    expected = fit(Linear(), make(kind, backbone, root), tmp_path)
    path = tmp_path / "stopped.ckpt"
    seen = fit(StopAt(step, path), make(kind, backbone, root), tmp_path)
    seen += fit(Linear(), make(kind, backbone, root), tmp_path, ckpt_path=path)
    assert len(expected) == STEPS
    assert seen == expected


@pytest.mark.parametrize("kind", ["live", "cached"])
def test_checkpoints_hold_no_backbone(tmp_path: Path, backbone: Backbone, root: Path, kind: str) -> None:
    path = tmp_path / "stopped.ckpt"
    fit(StopAt(2, path), make(kind, backbone, root), tmp_path)
    assert torch.load(path, weights_only=True)["state_dict"].keys() == {"weight"}


def losses_by_hand(rank: int, kind: str, backbone: Backbone, root: Path) -> list[float]:
    """Return the losses of 20 steps of gradient descent with all-reduced gradients."""
    data = make(kind, backbone, root)
    weight = torch.eye(24) / 2
    losses: list[float] = []
    loader = data.train_dataloader()
    while len(losses) < STEPS:
        for batch in loader:
            x = data.on_after_batch_transfer(batch, 0).activations[SITE]
            error = x @ weight - x
            moments = torch.cat([x.T @ error, error.square().sum(0, keepdim=True)])
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(moments)
            losses.append(float(moments[-1].sum()))
            weight = weight - 1e-3 * moments[:-1]
    return losses[:STEPS]


@pytest.mark.parametrize("kind", ["live", "cached"])
def test_two_ranks_have_the_loss_curve_of_one(backbone: Backbone, root: Path, kind: str) -> None:
    expected = losses_by_hand(0, kind, backbone, root)
    for losses in run_distributed(losses_by_hand, kind, backbone, root):
        assert losses == pytest.approx(expected, rel=1e-6)
