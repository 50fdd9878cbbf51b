"""LitCircuit: learns which nodes of a frozen vision transformer are enough for each of many tasks."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.table import Table
from torch import Tensor

from impact_lightning.activations.image_reader import ImageReader
from impact_lightning.backbones import Backbone, fingerprint
from impact_lightning.backbones.image_size import check_image_size
from impact_lightning.circuits.circuit_findings import Circuits, circuit_findings, circuit_table
from impact_lightning.circuits.controls import permute_weights
from impact_lightning.circuits.evaluation import Evaluation
from impact_lightning.circuits.gated import Gated, gating
from impact_lightning.circuits.masks import START, MaskKind, noise, relaxed
from impact_lightning.circuits.means import Ablation, Baseline, Means, Origin, measure_means, read_means
from impact_lightning.circuits.nodes import Granularity, Nodes
from impact_lightning.circuits.size import Prices, Target
from impact_lightning.circuits.task_data import TaskData
from impact_lightning.circuits.task_images import steps
from impact_lightning.circuits.tasks import judge
from impact_lightning.circuits.validation import Validator
from impact_lightning.data.module import normalise
from impact_lightning.ranks import all_sum, rank_and_world
from impact_lightning.results import Constant, Null, Record
from impact_lightning.steps import total_steps
from impact_lightning.types import UserError

SPREAD = 0.01  # of thresholds at the start


class LitCircuit(LightningModule):
    """Learn binary masks over the nodes of a frozen model, one for each task and seed, all in one pass.

    Args:
        backbone: The model and its weights.
        n_classes: Number of classes; taken from the data.
        seeds: Seeds of the masks; each learns every task.
        granularity: Whether q, k and v have a switch for each channel or for each head.
        tie_qk: Whether a channel of q and the same of k share a switch.
        ablation: What replaces a node that is off.
        target: The loss that circuits are compared at.
        penalty: A fixed price of a node; None finds for each circuit the price at which its loss is the target.
        lr: Learning rate of AdamW at the start; it falls to 0.
        betas: Decay rates of AdamW's moments.
        weight_decay: Of thresholds, towards 0.
        mask: Kind of the masks while they are learnt.
        temperature: Of the straight-through gradient, or of a sigmoid mask at the start.
        batch: Images of each circuit in a step, over all ranks.
        mean_images: Training images that means are taken over.
        random_circuits: Random circuits that each one is compared with.
        permuted_weights: A control: the weights of each layer are permuted, so that masks alone must do the task.
    """

    batches: Tensor
    unit = "steps"
    is_random = True  # without a checkpoint there are no circuits to test

    def __init__(
        self,
        backbone: Backbone,
        n_classes: int,
        seeds: list[int] | None = None,
        granularity: Granularity = "channel",
        tie_qk: bool = False,
        ablation: Ablation = "mean",
        target: Target | None = None,
        penalty: float | None = None,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 1e-3,
        mask: MaskKind = "heaviside",
        temperature: float = 1.0,
        batch: int = 16,
        mean_images: int = 2000,
        random_circuits: int = 20,
        permuted_weights: bool = False,
    ) -> None:
        super().__init__()
        if backbone.weights is None and not backbone.pretrained:
            raise UserError("model.backbone would have random weights: set backbone.weights or backbone.pretrained")
        for name, value, fits in (
            ("lr", lr, 0 < lr < math.inf),
            ("weight_decay", weight_decay, 0 <= weight_decay < math.inf),
            ("temperature", temperature, temperature > 0),
            ("seeds", seeds, seeds is None or (len(seeds) > 0 and min(seeds) >= 0)),
            ("random_circuits", random_circuits, random_circuits >= 1),
            ("batch", batch, batch >= 2),
            ("mean_images", mean_images, mean_images >= 1),
        ):
            if not fits:
                raise UserError(f"model.{name} is out of range: {value}")
        self.backbone_config = backbone
        self.n_classes = n_classes
        self.seeds = [0] if seeds is None else seeds
        self.ablation: Ablation = ablation
        self.target = target or Target()
        self.penalty = penalty
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.mask: MaskKind = mask
        self.temperature = temperature
        self.batch = batch
        self.mean_images = mean_images
        self.random_circuits = random_circuits
        self.model = replace(backbone, num_classes=n_classes).build().eval().requires_grad_(False)
        self.permuted_weights = permuted_weights
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        if permuted_weights:
            permute_weights(self.model, self.seed)
        self.nodes = Nodes(self.model, granularity=granularity, tie_qk=tie_qk)
        self.weights = fingerprint(self.model)
        self.records: list[Record] = []
        self.circuits: Circuits  # after a test
        self._gates = ExitStack()

    # ------------------------------------------------------------------------------------------------- building

    @property
    def data(self) -> TaskData:
        """The tasks and their images."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TaskData):
            raise UserError(f"LitCircuit learns tasks: use TaskData, not {type(data).__name__}")
        return data

    def setup(self, stage: str) -> None:
        """Make a mask for each task and seed, before a checkpoint is read."""
        check_image_size(self.model, self.backbone_config.name, self.data.data.image_shape)
        self.tasks = [task for task in range(len(self.data.tasks)) for _ in self.seeds]  # of each circuit
        self.mask_seeds = [seed for _ in self.data.tasks for seed in self.seeds]
        if not hasattr(self, "thresholds"):
            drawn = [
                torch.randn(self.nodes.n_switches, generator=torch.Generator().manual_seed(seed))
                for seed in self.mask_seeds
            ]
            self.thresholds = torch.nn.Parameter(START[self.mask] + SPREAD * torch.stack(drawn))  # (P, n_switches)
            self.prices = Prices(len(self.tasks), self.penalty)
            self.register_buffer("batches", torch.tensor(0))  # learnt from so far: steps may take several

    def means(self) -> Means:
        """Return the means of all nodes over general images; made once, and kept in the run's folder."""
        data = self.data
        path = Path(self.trainer.default_root_dir) / "means.safetensors"
        rows = data.general_rows(self.mean_images)
        origin = Origin(
            weights=self.weights,
            nodes=str(self.nodes),
            data=f"{data.fingerprint('train')}, rows {hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:8]}",
            transform=json.dumps(data.data.protocol(), sort_keys=True),
            images=len(rows),
            precision=str(self.trainer.precision),
        )
        if path.exists():
            return read_means(path, origin)
        n_prefix = int(self.model.num_prefix_tokens)
        means = measure_means(self.model, self.nodes, self._general(rows), n_prefix, origin)
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            means.write(path)
        return means

    def _general(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield this rank's part of some training images."""
        data = self.data.data
        rank, world = rank_and_world()
        n_batches = -(-len(rows) // data.eval_batch_size)
        reader = ImageReader(data.split("train"), workers=data.workers)
        for batch in reader.read(np.array_split(rows.numpy(), n_batches)[rank::world]):
            if len(batch.row):
                yield normalise(batch.images.to(self.device), data.mean, data.std)

    # ------------------------------------------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Measure constants, what the whole model and the empty circuit lose on each task, and open the gates."""
        self.constants = self.means().constants(self.ablation).to(self.device)
        select = Evaluation(self.model, self.nodes, self.data.tasks, self.data.images["select"].to(self.device))
        n_tasks = len(self.data.tasks)
        nothing = torch.zeros(n_tasks, self.nodes.n, dtype=torch.bool)
        empty = select(nothing, range(n_tasks), self.constants)
        self.full_loss = select.whole().loss[self.tasks].to(self.device)
        self.targets = self.target.of(self.full_loss, empty.loss[self.tasks].to(self.device))
        self.images = self.data.images["train"].to(self.device)
        of_circuits = [self.images.images[task] for task in self.tasks]
        self.steps = steps(of_circuits, self.batch, self.mask_seeds, start=int(self.batches))  # known only now
        self.baseline = Baseline(self.constants, self.nodes)
        self._gates = ExitStack()
        self.gated: Gated = self._gates.enter_context(gating(self.model, self.nodes))

    def teardown(self, stage: str) -> None:
        """Take the gates out, also after an error."""
        self._gates.close()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the losses and the prices of all circuits, added up: none has part in the gradient of another."""
        rank, world = rank_and_world()
        places, targets = (part[:, rank::world].to(self.device) for part in next(self.steps))  # (P, b)
        progress = self.global_step / total_steps(self.trainer)
        uniform = None
        if self.mask == "hard_concrete":
            uniform = noise(self.mask_seeds, self.nodes.n_switches, self.global_step).to(self.device)
        switches, sizes = relaxed(self.thresholds, self.mask, self.temperature, progress, uniform)
        self.batches += 1
        masks = self.nodes.expand(switches)  # (P, n)
        of = torch.arange(len(masks), device=self.device).repeat_interleave(places.shape[1])  # (P b,)
        images = self.images[places.flatten()]
        logits = self.gated(images, masks[of], self.baseline).view(*places.shape, -1)  # (P, b, C)
        # ranks may have unlike shares of an odd step, and their gradients are averaged: not the mean of each
        losses = self._losses(logits, targets, self._whole(images).view_as(logits)) * (world / self.batch)
        if not losses.isfinite().all():
            raise UserError(f"the loss of a circuit is not finite at step {self.global_step}: lower model.lr")
        self._losses_now = all_sum(losses.detach()) / world
        return (losses + self.prices().to(losses.dtype) * sizes.sum(1)).sum()

    @torch.no_grad()
    def _whole(self, images: Tensor) -> Tensor:
        """Return the logits of the whole model, where a task compares with them; else anything of their shape."""
        if all(task.readout != "kl" for task in self.data.tasks):
            return images.new_empty(len(images), self.n_classes)
        logits: Tensor = self.model(images)
        return logits

    def _losses(self, logits: Tensor, targets: Tensor, full: Tensor) -> Tensor:
        """Return the sum of the losses of each circuit `(P,)` from logits `(P, b, C)`."""
        tasks = [self.data.tasks[task] for task in self.tasks]
        parts = zip(tasks, logits, targets, full, strict=True)
        return torch.stack([judge(task, *part).loss.sum() for task, *part in parts])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the root mean square of each circuit's gradient at 1."""
        gradient = self.thresholds.grad
        assert gradient is not None
        gradient.div_(gradient.square().mean(1, keepdim=True).sqrt().clamp_min(1.0))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep thresholds where the straight-through gradient lives, and move prices."""
        if self.mask == "heaviside":
            with torch.no_grad():
                self.thresholds.clamp_(-1.0, 1.0)
        progress = self.global_step / total_steps(self.trainer)
        self.prices.move(self._losses_now, self.targets, self.full_loss, progress=progress)
        trainer: Any = self.trainer
        if self.global_step % trainer.log_every_n_steps == 0:
            kept = (self.thresholds >= 0).double().mean()
            self.log("train/loss", self._losses_now.mean().float(), prog_bar=True, rank_zero_only=True)
            self.log("train/kept", kept.float(), prog_bar=True, rank_zero_only=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, whose learning rate falls to 0 in a straight line."""
        optimizer = torch.optim.AdamW([self.thresholds], self.lr, self.betas, weight_decay=self.weight_decay)
        total = total_steps(self.trainer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -------------------------------------------------------------------------------------------------- testing

    def on_test_start(self) -> None:
        """Read the constants, outside of the pass that Lightning counts."""
        self.constants = self.means().constants(self.ablation).to(self.device)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Choose the size of every circuit, validate it, and record what it is."""
        data = self.data
        select, report = (
            Evaluation(self.model, self.nodes, data.tasks, data.images[name].to(self.device))
            for name in ("select", "report")
        )
        validator = Validator(
            self.model, self.nodes, self.constants, select, report, draws=self.random_circuits, seed=self.seed
        )
        scores, gradients = self.thresholds.detach().cpu(), self._attribution().cpu()
        validated = validator(scores, gradients, self.tasks, self.target)
        counts, live = validator.counts(torch.stack([one.mask for one in validated]))
        named = [data.names[task] for task in self.tasks]
        nonsense = [data.tasks[task].nonsense for task in self.tasks]
        self.circuits = Circuits(named, self.mask_seeds, nonsense, validated, counts, live)

    def on_test_epoch_end(self) -> None:
        """Turn what was found into records."""
        if rank_and_world()[0] == 0:
            self.records = [self._record(*found) for found in circuit_findings(self.circuits)]

    def _attribution(self) -> Tensor:
        """Return by how much the loss of each circuit's task moves when a switch is turned off, to first order."""
        images, n = self.data.images["train"].to(self.device), 64
        found = []
        with torch.inference_mode(mode=False), torch.enable_grad(), gating(self.model, self.nodes) as gated:
            baseline = Baseline(self.constants.clone(), self.nodes)
            for task, drawn in zip(self.data.tasks, images.images, strict=True):
                at = torch.randperm(len(drawn.rows), generator=torch.Generator().manual_seed(0))[:n]
                switches = torch.ones(1, self.nodes.n_switches, device=self.device, requires_grad=True)
                pixels = images[drawn.rows[at]].clone()
                logits = gated(pixels, self.nodes.expand(switches).expand(len(at), -1), baseline)
                loss = judge(task, logits, drawn.targets[at].to(self.device), self.model(pixels)).loss.mean()
                found.append(torch.autograd.grad(loss, switches)[0][0].abs())
        return torch.stack([found[task] for task in self.tasks])

    def _record(self, measure: str, value: float, of: str, n: int, null: Null | None, notes: tuple[str, ...]) -> Record:
        return Record(
            measure=measure,
            version=1,
            value=value,
            n=n,
            seed=self.seed,
            protocol=self.protocol(),
            weights=self.weights,
            data=self.data.fingerprint("report"),
            null=null,
            of=of,
            notes=notes,
        )

    def protocol(self) -> dict[str, Constant]:
        """Return the constants under which circuits were found and judged."""
        return {
            **self.data.protocol(),
            "nodes": str(self.nodes),
            "ablation": self.ablation,
            "mean_images": self.mean_images,
            "mask": self.mask,
            "target": asdict(self.target),
            "penalty": self.penalty,
            **{name: getattr(self, name) for name in ("batch", "lr", "betas", "weight_decay", "temperature")},
            "random_circuits": self.random_circuits,
            "permuted_weights": self.permuted_weights,
            "precision": str(self.trainer.precision),
        }

    def tables(self) -> list[Table]:
        """Return what a terminal shows: a row for each circuit."""
        return [circuit_table(self.circuits)]

    # ---------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """Return the state without the frozen model: it comes from where it came from."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith("model.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember what the masks belong to."""
        checkpoint["circuits"] = self._belongs_to()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse masks of another model or of other tasks, and name what differs."""
        self.strict_loading = False  # the frozen model is not in it
        saved, own = checkpoint.get("circuits", {}), self._belongs_to()
        for name, value in own.items():
            if saved.get(name) != value:
                raise UserError(f"the checkpoint has circuits of other {name}: {saved.get(name)}, now it is {value}")

    def _belongs_to(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "nodes": str(self.nodes),
            "tasks": [[t.readout, list(t.classes), t.nonsense] for t in self.data.tasks],
            "seeds": self.seeds,
            "ablation": self.ablation,
            "images": f"{self.data.sizes}, seed {self.data.seed}, of {self.data.fingerprint('train')}",
        }
