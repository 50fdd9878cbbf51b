"""LitCircuit: learns which nodes of frozen vision transformers are enough for each of many tasks, and compares them."""

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
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
from impact_lightning.backbones.named import check_models
from impact_lightning.circuits.controls import permute_weights
from impact_lightning.circuits.examination import Examiner, goals
from impact_lightning.circuits.findings import Finding, ModelCircuits, comparison, findings
from impact_lightning.circuits.learner import Circuit, Goal, Learner
from impact_lightning.circuits.learning import Learning
from impact_lightning.circuits.means import Means, Origin, measure_means, read_means
from impact_lightning.circuits.nodes import Granularity, Nodes
from impact_lightning.circuits.size import Target
from impact_lightning.circuits.tables import circuit_table, condition_table, model_table
from impact_lightning.circuits.task_data import TaskData
from impact_lightning.circuits.validation import Validated
from impact_lightning.circuits.verdict import DRAWS
from impact_lightning.data.module import normalise
from impact_lightning.ranks import rank_and_world
from impact_lightning.results import Constant, Record
from impact_lightning.steps import total_steps
from impact_lightning.types import UserError

PERMUTED = " with permuted weights"


class LitCircuit(LightningModule):
    """Learn binary masks over the nodes of frozen models, one for each task and seed, all in one pass of each model.

    Args:
        models: Models by name; circuits of all are compared with those of the first.
        n_classes: Number of classes; taken from the data.
        seeds: Seeds of the masks; each learns every task. Controls are learnt with the first.
        granularity: Whether q, k and v have a switch for each channel or for each head.
        tie_qk: Whether a channel of q and the same of k share a switch.
        learning: How masks are learnt.
        target: The loss that circuits are compared at.
        mean_images: Training images that means are taken over.
        random_circuits: Random circuits that each one is compared with.
        permuted_weights: A control: masks of each model with its weights permuted: masks alone must do the task.
    """

    batches: Tensor
    unit = "steps"
    is_random = True  # without a checkpoint there are no circuits to test

    def __init__(
        self,
        models: dict[str, Backbone],
        n_classes: int,
        seeds: list[int] | None = None,
        granularity: Granularity = "channel",
        tie_qk: bool = False,
        learning: Learning = Learning(),  # noqa: B008  # frozen
        target: Target = Target(),  # noqa: B008
        mean_images: int = 2000,
        random_circuits: int = 20,
        permuted_weights: bool = True,
    ) -> None:
        super().__init__()
        check_models(models, n_classes)
        for key, value, fits in (
            ("seeds", seeds, seeds is None or (len(seeds) > 0 and min(seeds) >= 0 and len(set(seeds)) == len(seeds))),
            ("mean_images", mean_images, mean_images >= 1),
        ):
            if not fits:
                raise UserError(f"model.{key} is out of range: {value}")
        if random_circuits < DRAWS:
            raise UserError(
                f"model.random_circuits must be {DRAWS} or more, got {random_circuits}: p-values are shares of them"
            )
        self.backbones = models
        self.n_classes = n_classes
        self.seeds = [0] if seeds is None else seeds
        self.granularity: Granularity = granularity
        self.tie_qk = tie_qk
        self.learning = learning
        self.target = target
        self.mean_images = mean_images
        self.random_circuits = random_circuits
        self.permuted_weights = permuted_weights
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.models = torch.nn.ModuleDict()  # frozen; those that control others follow them
        for name, backbone in models.items():
            model = replace(backbone, num_classes=n_classes).build().eval().requires_grad_(False)
            self.models[_key(name)] = model
            if permuted_weights:
                self.models[_key(name + PERMUTED)] = copy.deepcopy(model)
                permute_weights(self.models[_key(name + PERMUTED)], self.seed)
        self.weights = {name: fingerprint(self.models[_key(name)]) for name in self.names}
        self.records: list[Record] = []
        self.found: list[ModelCircuits] = []  # of each model, after a test

    @property
    def names(self) -> list[str]:
        """What models are called, in order, and those that control them."""
        both = [(name, name + PERMUTED) if self.permuted_weights else (name,) for name in self.backbones]
        return [name for group in both for name in group]

    # ------------------------------------------------------------------------------------------------- building

    @property
    def data(self) -> TaskData:
        """The tasks and their images."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, TaskData):
            raise UserError(f"LitCircuit learns tasks: use TaskData, not {type(data).__name__}")
        return data

    def setup(self, stage: str) -> None:
        """Make a mask for each model, task and seed, before a checkpoint is read."""
        for name in self.backbones:
            check_image_size(self.models[_key(name)], f"model.models.{name}", self.data.data.image_shape)
        if self.permuted_weights and all(task.readout == "kl" for task in self.data.tasks):
            raise UserError("model.permuted_weights has no task: its own predictions are none; set it to false")
        if not hasattr(self, "learners"):
            self.learners = torch.nn.ModuleDict({_key(name): self._learner(name) for name in self.names})
            self.register_buffer("batches", torch.tensor(0))  # learnt from so far: steps may take several

    def _learner(self, name: str) -> Learner:
        tasks = self.data.tasks
        is_control = name.endswith(PERMUTED)
        circuits = [
            Circuit(number, seed)
            for number, task in enumerate(tasks)
            for seed in (self.seeds[:1] if task.nonsense or is_control else self.seeds)
            if not is_control or (not task.nonsense and task.readout != "kl")  # its own predictions are no task
        ]
        model = self.models[_key(name)]
        nodes = Nodes(model, granularity=self.granularity, tie_qk=self.tie_qk)
        return Learner(name, model, nodes, self.weights[name], circuits, tasks, self.learning)

    def learner(self, name: str) -> Learner:
        """Return the circuits of a model."""
        found: Any = self.learners[_key(name)]
        return found  # type: ignore[no-any-return]

    def means(self, name: str) -> Means:
        """Return the means of all nodes over general images; made once, and kept in the run's folder."""
        data, learner = self.data, self.learner(name)
        backbone = self.backbones[name.removesuffix(PERMUTED)]
        shape = repr((backbone.name, backbone.model_args, backbone.activation_topk))  # weights do not say all
        file = f"{learner.weights}-{hashlib.sha256(shape.encode()).hexdigest()[:8]}.safetensors"
        path = Path(self.trainer.default_root_dir) / "means" / file
        rows = data.general_rows(self.mean_images)
        origin = Origin(
            weights=learner.weights,
            nodes=str(learner.nodes),
            data=f"{data.fingerprint('train')}, rows {hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:8]}",
            transform=json.dumps(data.data.protocol(), sort_keys=True),
            images=len(rows),
            precision=str(self.trainer.precision),
        )
        if path.exists():
            return read_means(path, origin)
        model: Any = learner.model
        try:
            means = measure_means(model, learner.nodes, self._general(rows), int(model.num_prefix_tokens), origin)
        except UserError as error:
            raise UserError(f"model.models.{name}: {error}") from None
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            means.write(path)
        self.trainer.strategy.barrier()  # another model may have the same weights: all ranks find the file, or none
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

    def _prepare(self) -> tuple[dict[str, Means], Goal, dict[str, Goal]]:
        """Return the means and the goals of each model, and move images to where the models are."""
        means = {name: self.means(name) for name in self.names}
        for images in self.data.images.values():
            images.to(self.device)
        real = list(self.backbones)
        found = goals([self.learner(n) for n in real], [means[n] for n in real], self.data, self.target, self.seed)
        by_name = dict(zip(real, found, strict=True))
        return means, found[0], {**by_name, **{name + PERMUTED: goal for name, goal in by_name.items()}}

    # ------------------------------------------------------------------------------------------------- training

    def on_train_start(self) -> None:
        """Measure constants, what the whole models and the empty circuits lose on each task, and open the gates."""
        means, _, goals_of = self._prepare()
        for name in self.names:
            learner, goal = self.learner(name), goals_of[name]
            tasks = [circuit.task for circuit in learner.circuits]
            own = Goal(*(part[tasks] for part in goal))
            learner.start(means[name], own, self.data.images["train"], int(self.batches))

    def teardown(self, stage: str) -> None:
        """Take the gates out, also after an error."""
        for name in reversed(self.names) if hasattr(self, "learners") else ():  # in the reverse order: they nest
            self.learner(name).stop()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the losses of the circuits of all models, added up: none has part in the gradient of another."""
        progress = self.global_step / total_steps(self.trainer)
        self.batches += 1
        return torch.stack([self.learner(name).loss(self.global_step, progress) for name in self.names]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip gradients, each circuit's for itself."""
        for name in self.names:
            self.learner(name).clip()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, keep thresholds in range, and move prices: all of it before a checkpoint can be written."""
        progress = self.global_step / total_steps(self.trainer)
        super().optimizer_step(*args, **kwargs)
        for name in self.names:
            self.learner(name).after_step(progress, self.trainer.optimizers[0])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log how far circuits are."""
        trainer: Any = self.trainer
        if self.global_step % trainer.log_every_n_steps == 0:
            for name in self.backbones:
                loss, kept = self.learner(name).progress()
                for measure, value in (("loss", loss), ("kept", kept)):
                    self.log(f"train/{measure}/{name}", value, prog_bar=len(self.backbones) == 1, rank_zero_only=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, whose learning rate falls to 0 in a straight line."""
        how = self.learning
        learners = [self.learner(name) for name in self.names]
        # of most switches the gradient is their price alone, which may be 1e-8: it has to count. Of constants that
        # nobody reads it is rounding noise: it must not
        groups: list[dict[str, Any]] = [{"params": [one.thresholds for one in learners], "eps": 1e-15}]
        if how.ablation == "learned":
            groups.append({"params": [one.shifts for one in learners], "eps": 1e-5})
        optimizer = torch.optim.AdamW(groups, how.lr, how.betas, weight_decay=how.weight_decay)
        total = total_steps(self.trainer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -------------------------------------------------------------------------------------------------- testing

    def on_test_start(self) -> None:
        """Read the constants, outside of the pass that Lightning counts."""
        self._means, self._goal, _ = self._prepare()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Choose the size of every circuit, validate it, and say what it is."""
        examine = Examiner(self.data, self.random_circuits, self.seed, self._track)
        self.found = []
        for name in self.backbones:
            control = name + PERMUTED if self.permuted_weights else None
            means = [self._means[one] for one in (name, control) if one is not None]
            permuted = None if control is None else self.learner(control)
            self.found.append(examine(self.learner(name), permuted, means, self._goal.target))

    def constants(self, name: str) -> Tensor:
        """Return what replaced nodes in the test, `(1 or T, n)`, or for each circuit of the learner `(P, 1, n)`."""
        return self.learner(name).constants(self._means[name])

    def _track(self, validated: Iterable[Validated], total: int, name: str) -> Iterable[Validated]:
        bar: Any = self.trainer.progress_bar_callback
        return bar.track(validated, total, f"circuits of {name}") if hasattr(bar, "track") else validated

    def on_test_epoch_end(self) -> None:
        """Turn what was found into records."""
        if rank_and_world()[0] != 0:
            return
        self.records = []
        for found in self.found:
            compared = comparison(found, self.found[0]) if found is not self.found[0] else ()
            self.records += [self._record(one, found.model) for one in (*findings(found), *compared)]

    def _record(self, one: Finding, model: str) -> Record:
        return Record(
            measure=one.measure,
            version=1,
            value=one.value,
            n=one.n,
            seed=self.seed,
            protocol={**self.protocol(), "nodes": str(self.learner(model).nodes)},
            weights=self.weights[model],
            data=self.data.fingerprint("report"),
            null=one.null,
            interval=one.interval,
            of=one.of,
            notes=one.notes,
        )

    def protocol(self) -> dict[str, Constant]:
        """Return the constants under which circuits were found and judged."""
        return {
            **self.data.protocol(),
            "nodes": str(self.learner(self.names[0]).nodes),
            "learning": asdict(self.learning),
            "steps": int(self.batches),
            "mask_seeds": self.seeds,
            "mean_images": self.mean_images,
            "target": asdict(self.target),
            "target_of": "the largest of the models" if len(self.backbones) > 1 else "the model",
            "models": [f"{name} {self.weights[name]}" for name in self.backbones],
            "random_circuits": self.random_circuits,
            "permuted_weights": self.permuted_weights,
            "precision": str(self.trainer.precision),
        }

    def tables(self) -> list[Table]:
        """Return what a terminal shows: a row for each circuit, for each condition and for each model."""
        of_each = [table for found in self.found for table in (circuit_table(found), condition_table(found))]
        return [*of_each, model_table(self.found)]

    # ---------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """Return the state without the frozen models: they come from where they came from."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        frozen = ("models.", *(f"learners.{_key(name)}.model." for name in self.names))
        return {key: value for key, value in state.items() if not key.startswith(frozen)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember what the masks belong to."""
        checkpoint["circuits"] = self._belongs_to()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse masks of other models or of other tasks, and name what differs."""
        self.strict_loading = False  # the frozen models are not in it
        saved, own = checkpoint.get("circuits", {}), self._belongs_to()
        for name, value in own.items():
            if saved.get(name) != value:
                raise UserError(f"the checkpoint has circuits of other {name}: {saved.get(name)}, now it is {value}")

    def _belongs_to(self) -> dict[str, Any]:
        return {
            "weights": {name: self.weights[name] for name in self.backbones},
            "permuted_weights": self.permuted_weights,
            "nodes": str(self.learner(self.names[0]).nodes),
            "tasks": [[t.readout, list(t.classes), list(t.against), t.nonsense] for t in self.data.tasks],
            "seeds": self.seeds,
            "learning": asdict(self.learning),
            "images": f"{self.data.sizes['train']}, seed {self.data.seed}, of {self.data.fingerprint('train')}",
            "mean_images": self.mean_images,
        }


def _key(name: str) -> str:
    """Return a name that a module can have: one without dots, and none of its methods."""
    key = name.replace(".", "·")
    return f"{key}·" if hasattr(torch.nn.ModuleDict(), key) else key
