"""The classifier: train or fine-tune a vision transformer, and measure how often it is right."""

import math
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.data.mixup import Mixup
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # exported without saying so
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from impact_lightning.backbones.backbone import Backbone, fingerprint
from impact_lightning.backbones.sites import check_supported
from impact_lightning.metrics import ClassifierScores
from impact_lightning.ranks import all_sum
from impact_lightning.results import Constant, Interval, Null, Record
from impact_lightning.steps import total_steps
from impact_lightning.types import ImageBatch, UserError


@dataclass(frozen=True)
class Mixing:
    """Mix pairs of training images and their labels (timm's mixup and cutmix, one draw a batch).

    Args:
        mixup: Alpha of mixup; 0 is off.
        cutmix: Alpha of cutmix; 0 is off.
        probability: Share of the batches that are mixed.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what mixes nothing, or cannot be drawn."""
        if min(self.mixup, self.cutmix) < 0 or not max(self.mixup, self.cutmix) or not 0 < self.probability <= 1:
            raise UserError(f"model.mixing is out of range: {self}")


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Return the factor of the learning rate: linear from 0 to 1, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class LitClassifier(LightningModule):
    """Train a timm vision transformer to classify; measure top-1 and top-5 with their nulls.

    Args:
        backbone: The model to build.
        n_classes: Number of classes; taken from the data.
        lr: Peak learning rate of AdamW.
        weight_decay: On matrices only: biases, norms, position embeddings and class tokens are left alone.
        betas: Decay rates of AdamW's two moments.
        eps: What AdamW adds to the root of its second moment; 0.1 is that of weight-sparse transformers.
        warmup_steps: Steps of linear warm-up before the cosine.
        lr_floor: Share of the peak learning rate that is left at the end.
        label_smoothing: Share of the target spread over all classes.
        mixing: Mixup and cutmix; none by default.
        ema_decay: Decay of an average of the weights, which is then the model that is evaluated; none by default.
        train_only: Names of parameters to train, by prefix, such as `head`; all by default. The others are frozen
            and left out of checkpoints, so they must come from `backbone.pretrained` or `backbone.weights`.
    """

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup_steps: int = 0,
        lr_floor: float = 0.0,
        label_smoothing: float = 0.0,
        mixing: Mixing | None = None,
        ema_decay: float | None = None,
        train_only: list[str] | None = None,
    ) -> None:
        super().__init__()
        for name, value, fits in (
            ("lr", lr, lr > 0),
            ("weight_decay", weight_decay, weight_decay >= 0),
            ("betas", betas, all(0 <= beta < 1 for beta in betas)),
            ("eps", eps, eps > 0),
            ("warmup_steps", warmup_steps, warmup_steps >= 0),
            ("lr_floor", lr_floor, 0 <= lr_floor <= 1),
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1),
            ("ema_decay", ema_decay, ema_decay is None or 0 <= ema_decay < 1),
        ):
            if not fits:
                raise UserError(f"model.{name} is out of range: {value}")
        self.save_hyperparameters()
        self.backbone_config = backbone
        self.n_classes = n_classes
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.eps = eps
        self.warmup_steps = warmup_steps
        self.lr_floor = lr_floor
        self.label_smoothing = label_smoothing
        self.model = replace(backbone, num_classes=n_classes).build()
        self.mixup: Mixup | None = None
        if mixing is not None:
            alphas = (mixing.mixup, mixing.cutmix)
            self.mixup = Mixup(*alphas, prob=mixing.probability, label_smoothing=label_smoothing, num_classes=n_classes)
        self._freeze(train_only)
        self.strict_loading = train_only is None  # frozen keys are missing; `on_load_checkpoint` checks the others
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
            self.ema.requires_grad_(False)  # or ranks would wait for its gradients
        self.records: list[Record] = []
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # where `seed_everything` leaves it
        self.val_scores = ClassifierScores(n_classes)
        self.test_scores = ClassifierScores(n_classes)

    def _freeze(self, train_only: list[str] | None) -> None:
        if train_only is None:
            return
        if self.is_random:
            raise UserError("model.train_only freezes random weights: set backbone.pretrained or backbone.weights")
        trained = 0
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(tuple(train_only)))
            trained += parameter.requires_grad
        if not trained:
            known = sorted({name.split(".")[0] for name, _ in self.model.named_parameters()})
            raise UserError(f"model.train_only {train_only} matches no parameter; they begin with: {', '.join(known)}")

    @property
    def is_random(self) -> bool:
        """Whether nothing but a checkpoint could give this model weights worth measuring."""
        return not (self.backbone_config.pretrained or self.backbone_config.weights)

    def setup(self, stage: str) -> None:
        """Refuse images that the model cannot take, before anything runs."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.mixup is not None and data.batch_size // self.trainer.world_size % 2:
            raise UserError(
                f"model.mixing pairs images: data.batch_size {data.batch_size} gives each rank an odd number"
            )
        patches, shape = self.model.patch_embed, data.image_shape
        takes = (patches.proj.in_channels, *patches.img_size)
        if shape[0] != takes[0] or (shape != takes and patches.strict_img_size):
            raise UserError(
                f"the data gives images of (channels, height, width) {shape}, model {self.backbone_config.name} takes "
                f"{takes}: change the size of the data, or img_size and in_chans in backbone.model_args"
            )

    # ------------------------------------------------------------------------------------------------ training

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with decay on matrices only, and warm-up + cosine by the step."""
        groups = param_groups_weight_decay(
            self.model, self.weight_decay, no_weight_decay_list=self.model.no_weight_decay()
        )
        # Lightning takes a fused optimiser for one that unscales gradients itself, and does not clip those.
        is_clipped = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=not is_clipped)
        total = total_steps(self.trainer)

        def factor(step: int) -> float:
            return warmup_cosine(step, warmup=self.warmup_steps, total=total, floor=self.lr_floor)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of this rank's images."""
        images, targets = batch.images, batch.labels
        smoothing = self.label_smoothing
        if self.mixup is not None:
            even = len(images) // 2 * 2  # mixing pairs images; a damaged one may have left its partner alone
            images, targets = self.mixup(images[:even], targets[:even])
            smoothing = 0.0  # already in the mixed targets
        logits = self.model(images)
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        self._log_loss(loss.detach(), len(images))
        return loss

    def _log_loss(self, loss: Tensor, n: int) -> None:
        """Log the mean over all ranks, when it is due: it costs a collective, and looking at it waits for the GPU."""
        trainer: Any = self.trainer
        if (self.global_step + 1) % trainer.log_every_n_steps:
            return
        total, count = all_sum(torch.stack([loss * n, loss.new_tensor(n)]))
        if not torch.isfinite(total):
            raise UserError(f"the training loss is {float(total / count)} at step {self.global_step}: lower model.lr")
        self.log("train/loss", total / count, prog_bar=True, rank_zero_only=True)
        self.log("train/lr", trainer.optimizers[0].param_groups[0]["lr"], rank_zero_only=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Let the average follow every step, before any checkpoint can be written."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    # ---------------------------------------------------------------------------------------------- evaluation

    @property
    def evaluated(self) -> nn.Module:
        """Return the model that is measured: the average of the weights where there is one."""
        return self.model if self.ema is None else self.ema.module

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(B, C)` of normalised images `(B, 3, h, w)`."""
        logits: Tensor = self.evaluated(images)
        return logits

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Count one batch."""
        if len(batch.images):
            self.val_scores.update(self(batch.images), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log the scores over all ranks."""
        scores = self.val_scores.collect()
        shown = {f"val/{name}": score["value"] for name, score in scores.items()}
        self.log_dict(shown, prog_bar=True, sync_dist=True)  # equal on all ranks; without it Lightning warns

    def on_test_start(self) -> None:
        """Forget the records of a former test."""
        self.records = []

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Count one batch."""
        if len(batch.images):
            self.test_scores.update(self(batch.images), batch.labels)

    def on_test_epoch_end(self) -> None:
        """Turn the scores over all ranks into records."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        weights = fingerprint(self.evaluated)
        for name, score in self.test_scores.collect().items():
            self.log(f"test/{name}", score["value"], sync_dist=True)
            self.records.append(
                Record(
                    measure=name,
                    version=1,
                    value=score["value"],
                    n=int(score["n"]),
                    seed=self.seed,
                    protocol={
                        **data.protocol(),
                        "data_seed": data.seed,
                        "precision": str(self.trainer.precision),
                        "ema": self.ema is not None,
                    },
                    weights=weights,
                    data=data.fingerprint("test"),
                    null=Null(score["null"], "labels permuted, exact expectation") if "null" in score else None,
                    interval=Interval(score["low"], score["high"], "Wilson" if "null" in score else "normal"),
                    notes=data.notes("test"),
                )
            )

        self.records.append(self._density(weights, data.fingerprint("test")))

    def _density(self, weights: str, data: str) -> Record:
        """Return how many weights of the linear layers of the blocks are not zero."""
        blocks: Any = check_supported(self.evaluated).blocks
        matrices = [layer.weight for layer in blocks.modules() if isinstance(layer, nn.Linear)]
        n = sum(matrix.numel() for matrix in matrices)
        nonzeros = sum(int(matrix.count_nonzero()) for matrix in matrices)
        protocol: dict[str, Constant] = {"of": "linear layers of the blocks"}
        return Record("weight_density", 1, nonzeros / n, n, self.seed, protocol, weights, data)

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return the position of every image, its label, and the probability of every class."""
        if not len(batch.images):
            return {}
        return {"index": batch.row, "label": batch.labels, "probability": self(batch.images).float().softmax(1)}

    # --------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """Return the state without frozen parameters: they come from where they came from."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name not in self._frozen}

    @property
    def _frozen(self) -> set[str]:
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        return {prefix + name for name in frozen for prefix in ("model.", "ema.module.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the seed, and which frozen weights the trained ones belong to."""
        checkpoint["seed"] = self.seed
        checkpoint["frozen"] = self._frozen_fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights that do not fit this model, by name; the seed of what is measured is that of its training."""
        if self._trainer is not None and self.trainer.state.fn == "fit" and checkpoint.get("seed") != self.seed:
            raise UserError(f"the run was begun with seed_everything {checkpoint.get('seed')}, now it is {self.seed}")
        self.seed = checkpoint.get("seed", self.seed)
        saved, own = checkpoint["state_dict"], self.state_dict()
        wrong = sorted(saved.keys() ^ own.keys()) or sorted(
            f"{name} {tuple(saved[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own
            if saved[name].shape != own[name].shape
        )
        if wrong:
            raise UserError(
                f"the checkpoint does not fit model {self.backbone_config.name}: "
                f"{', '.join(wrong[:5])}{' and more' if len(wrong) > 5 else ''}"
            )
        if checkpoint.get("frozen") != self._frozen_fingerprint():
            raise UserError("the checkpoint was trained on other frozen weights than backbone.weights gives now")

    def _frozen_fingerprint(self) -> str | None:
        frozen = {name: p for name, p in self.model.named_parameters() if not p.requires_grad}
        return fingerprint(frozen) if frozen else None
