"""Weight-sparse training: after every step of the optimiser the largest weights stay, and the rest are zeroed."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from impact_lightning.backbones.classifier import LitClassifier
from impact_lightning.backbones.sites import unwrap
from impact_lightning.sparsity.density_log import DensityLog
from impact_lightning.sparsity.density_schedule import Course, DensitySchedule
from impact_lightning.sparsity.emptied import emptied
from impact_lightning.sparsity.gradient_rms import GradientRule
from impact_lightning.sparsity.pruned_file import masks_path, write_pruned
from impact_lightning.sparsity.sparse_average import DENSE, SparseAverage
from impact_lightning.sparsity.sparse_steps import SparseSteps
from impact_lightning.sparsity.sparse_tensor import SparseTensor
from impact_lightning.sparsity.targets import find_targets, kind, kinds
from impact_lightning.steps import total_steps
from impact_lightning.types import UserError

MULTIPLES = {"blocks.*": 1.0, "patch_embed.proj": 4.0, "head": 4.0}
NONE: list[str] = []


class WeightSparse(Callback):
    """Train a classifier whose weights are sparse (Gao et al., arXiv 2511.13653); gradients and moments stay dense.

    Every checkpoint and evaluation has the exact counts, the average of the weights included. `density.csv` of the run
    tells them in the course of the training, for every tensor; `sparse.safetensors` is the model at the end, for plain
    timm, with its masks. `best.ckpt` is chosen among models that have reached the density.

    Gradual magnitude pruning is `regrow: false, course: cubic, sharkfin: false, gradient: none, min_alive: 0`.

    Args:
        density: Share of the weights that are not zero in the end.
        multiples: What is sparse, by patterns as in `prune`, and the multiple of `density` that it keeps; of several
            patterns the last counts. All other parameters stay dense: biases, norms, tokens, position embeddings.
        dense: Patterns of weights that stay dense though `multiples` means them.
        course: How the density falls from 1.
        begin: Share of all steps after which it begins to fall.
        end: Share of all steps after which it has fallen.
        sharkfin: Multiply the learning rate by `sqrt(density / current density)`, which becomes 1.
        gradient: Bring the root mean square of the gradient to at most 1 (`clip`), to 1 (`normalise`), or not (`none`).
        min_alive: Least number of weights of each neuron and attention channel; 0 is off.
        regrow: Let weights come back that were zero. Without it the zeros only grow.
    """

    def __init__(
        self,
        density: float = 0.1,
        multiples: dict[str, float] = MULTIPLES,
        dense: list[str] = NONE,
        course: Course = "linear",
        begin: float = 0.0,
        end: float = 0.5,
        sharkfin: bool = True,
        gradient: GradientRule = "clip",
        min_alive: int = 4,
        regrow: bool = True,
    ) -> None:
        if min_alive < 0:
            raise UserError(f"WeightSparse: min_alive must not be negative, got {min_alive}")
        for pattern, multiple in multiples.items():
            if not 0 < multiple < float("inf"):
                raise UserError(f"WeightSparse: the multiple of {pattern} must be positive, got {multiple}")
        self.schedule = DensitySchedule(density, course, begin, end)
        self.multiples = multiples
        self.dense = dense
        self.sharkfin = sharkfin
        self.gradient: GradientRule = gradient
        self.min_alive = min_alive
        self.regrow = regrow
        self.tensors: list[SparseTensor] = []
        self.average: SparseAverage | None = None
        self._steps: SparseSteps | None = None
        self._log: DensityLog | None = None
        self._loaded: Mapping[str, Tensor] | None = None
        self._hooks: list[RemovableHandle] = []
        self._path: Path | None = None  # of the weights for plain timm

    # ------------------------------------------------------------------------------------------- before the fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the weights; refuse what cannot become sparse, before anything runs."""
        if stage != "fit":
            return
        if not isinstance(pl_module, LitClassifier):
            raise UserError(f"WeightSparse trains a LitClassifier, not a {type(pl_module).__name__}")
        if sum(isinstance(callback, WeightSparse) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise UserError("trainer.callbacks: WeightSparse is there twice")
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise UserError(
                f"WeightSparse needs whole weights, which {type(trainer.strategy).__name__} cuts up; use ddp"
            )
        if trainer.precision == "16-mixed":
            raise UserError("WeightSparse measures gradients, which 16-mixed scales; use bf16-mixed or 32-true")
        self.tensors = self._find(pl_module.model)
        for tensor in self.tensors:
            tensor.check(self.schedule.target)
            if not tensor.target.layer.weight.requires_grad:
                raise UserError(f"WeightSparse: {tensor.name} is frozen by model.train_only; name it under `dense`")
        if pl_module.ema is not None:
            self.average = SparseAverage(self._find(pl_module.ema.module))

    def _find(self, model: nn.Module) -> list[SparseTensor]:
        multiples: dict[str, float] = {}
        for pattern, multiple in self.multiples.items():
            multiples |= {t.name: multiple for t in find_targets(model, [pattern], options=("multiples", "dense"))}
        targets = find_targets(model, self.multiples, self.dense, options=("multiples", "dense"))
        return [SparseTensor(target, multiples[target.name], self.min_alive) for target in targets]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the dense average until it has a place."""
        self._loaded = checkpoint.get(DENSE)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what becomes sparse, bring the weights to the density of this step, and follow the optimiser."""
        self._steps = steps = SparseSteps(
            self.tensors,
            self.schedule,
            total_steps(trainer),
            sharkfin=self.sharkfin,
            gradient=self.gradient,
            regrow=self.regrow,
        )
        if self.average is not None and self._loaded is not None:
            self.average.load(self._loaded)
        steps.sparsify(trainer.global_step)
        # before the average of the weights follows, unlike Lightning's own hooks; Lightning counts the step later
        for optimizer in trainer.optimizers:
            hook = optimizer.register_step_post_hook(lambda of, *_: steps.after(of, trainer.global_step + 1))
            self._hooks.append(hook)
        if trainer.is_global_zero:
            print("\n".join(self._plan(pl_module)))
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set at run time
            self._log = DensityLog(Path(trainer.default_root_dir) / "density.csv", trainer.global_step)
            self._write(trainer, pl_module)

    # --------------------------------------------------------------------------------------------- in each step

    @property
    def is_unfinished(self) -> bool:
        """Whether the density still falls: what is measured now is another model than the one that was asked for."""
        return self._steps is not None and self._steps.reached > self.schedule.target

    @property
    def steps(self) -> SparseSteps:
        """What surrounds each step, once the fit has begun."""
        assert self._steps is not None
        return self._steps

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Scale the gradient and, for this step, the learning rate."""
        self.steps.before(optimizer, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the density, when it is due."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set at run time
        if not trainer.global_step or trainer.global_step % every:
            return
        scalars = {
            "density": self.achieved(),
            "lr": self.steps.rate,
            "gradient_rms": self.steps.gradient_rms,
        }
        pl_module.log_dict({f"sparsity/{name}": value for name, value in scalars.items()}, rank_zero_only=True)
        self._write(trainer, pl_module)

    # ------------------------------------------------------------------------------- evaluations and checkpoints

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate a sparse average."""
        if self.average is not None and self._hooks:
            self.average.make_sparse(self.steps.density(trainer.global_step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the average follow all weights again."""
        if self.average is not None and self._hooks:
            self.average.make_dense()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store a sparse average, and the dense one beside it."""
        if self.average is not None:
            self.average.save(checkpoint, self.steps.density(trainer.global_step))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimiser alone, and a sparse average behind."""
        while self._hooks:
            self._hooks.pop().remove()
        if self.average is not None:
            self.average.make_sparse(self.steps.density(trainer.global_step))
        self._write(trainer, pl_module)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # set at run time
            self._export(trainer, pl_module)

    def _export(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the model that is evaluated for plain timm, with masks: a fit that begins with it keeps its zeros."""
        assert isinstance(module, LitClassifier)
        weights = unwrap(module.evaluated).state_dict()
        self._path = Path(trainer.default_root_dir) / "sparse.safetensors"
        masks = {tensor.name: weights[tensor.name] != 0 for tensor in self.tensors}
        shares = {name: 1 - int(mask.sum()) / mask.numel() for name, mask in masks.items()}
        backbone = module.backbone_config
        protocol = {
            "model": backbone.name,
            "model_args": backbone.model_args,
            "num_classes": module.n_classes,
            "activation_topk": backbone.activation_topk and asdict(backbone.activation_topk),
            "method": "weight-sparse training" if self.regrow else "gradual pruning",
            **{
                name: getattr(self, name)
                for name in ("multiples", "dense", "sharkfin", "gradient", "min_alive", "regrow")
            },
            "schedule": asdict(self.schedule),
            "steps": trainer.global_step,
            "seed": module.seed,
            "achieved": {**shares, "total": 1 - self.achieved()},
            "emptied": asdict(emptied(masks)),
        }
        write_pruned(self._path, weights, masks, protocol)

    # --------------------------------------------------------------------------------------------------- report

    def achieved(self) -> float:
        """Return the share of the weights of sparse tensors that are not zero."""
        nonzeros = torch.stack([tensor.weight.count_nonzero() for tensor in self.tensors]).sum()
        return int(nonzeros) / sum(tensor.weight.numel() for tensor in self.tensors)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, when the progress bar is gone."""
        if trainer.is_global_zero:
            groups: dict[str, list[Tensor]] = {}
            for tensor in self.tensors:
                groups.setdefault(kind(tensor.name), []).append(tensor.weight)
            share = f"{self.achieved():.4f} of the weights of all sparse tensors are not zero"
            print(f"\nweight-sparse: {share}; the target is {self.schedule.target} times the multiple of each")
            for name, weights in groups.items():
                nonzeros, numel = sum(int(w.count_nonzero()) for w in weights), sum(w.numel() for w in weights)
                print(f"  {nonzeros / numel:.4f}  {nonzeros:,} of {numel:,} weights of {name}")
            print(f"  {emptied({tensor.name: tensor.weight != 0 for tensor in self.tensors})}")
            if self._path is not None:
                print(f"  for timm    {self._path}  {masks_path(self._path).name}")

    def _plan(self, module: LightningModule) -> list[str]:
        """Return what becomes sparse, and what stays dense."""
        ends: dict[float, list[str]] = {}
        for tensor in self.tensors:
            ends.setdefault(tensor.density(self.schedule.target), []).append(tensor.name)
        sparse = {tensor.name for tensor in self.tensors}
        dense = [name for name in _parameters(module) if name not in sparse]
        lines = [f"weight-sparse: {', '.join(kinds(names))} end at density {end:g}" for end, names in ends.items()]
        return [*lines, f"  dense stay {', '.join(kinds(dense)) or 'none'}"]

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        if self._log is not None:
            density = self.steps.density(trainer.global_step)
            rules = {tensor.name: tensor.density(density) for tensor in self.tensors}
            self._log.add(trainer.global_step, _parameters(module), rules)


def _parameters(module: LightningModule) -> dict[str, Tensor]:
    """Return the parameters of the model that is trained, by the names they have in timm."""
    assert isinstance(module, LitClassifier)
    return dict(unwrap(module.model).named_parameters())
