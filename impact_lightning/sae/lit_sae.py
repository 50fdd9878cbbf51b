"""Training of sparse autoencoders: several of them, of any kind, from one stream of activations."""

import math
import os
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from impact_lightning.activations.batch import ActivationBatch
from impact_lightning.activations.module import ActivationDataModule
from impact_lightning.backbones import Backbone
from impact_lightning.ranks import all_sum
from impact_lightning.results import Record
from impact_lightning.sae.autoencoder import SAE, Objective
from impact_lightning.sae.batch_topk import BatchTopK
from impact_lightning.sae.dictionary import Centre, Dictionary, SAEFactory
from impact_lightning.sae.embedding import Embedding
from impact_lightning.sae.examiner import Examiner
from impact_lightning.sae.export import describe
from impact_lightning.sae.features import Description, Features
from impact_lightning.sae.optimizer import DictionaryAdam
from impact_lightning.sae.scaling import ScalingMode
from impact_lightning.sae.schedule import Schedule
from impact_lightning.sae.side_by_side import SideBySide
from impact_lightning.sae.sparse_autoencoder import SparseSAE
from impact_lightning.sae.threshold import calibrate
from impact_lightning.steps import total_steps
from impact_lightning.types import UserError

MEASURES = ("fvu", "ev", "nmse_origin", "cosine", "bias", "l0", "dead", "ultra_low")  # of every validation


class LitSAE(LightningModule):
    """Train one dictionary for every combination of site, kind, width and seed, from one stream of activations.

    Args:
        kinds: Kinds of dictionaries with their settings, such as `BatchTopK` with `k: 32`.
        sites: Sites to read; all that the data has by default.
        target: Site that transcoders should give; none trains autoencoders.
        expansions: Latents per channel of the site.
        seeds: Seeds of the initial weights.
        lr: Learning rate of Adam.
        betas: Decay rates of Adam's two moments.
        max_norm: Clip the gradient of each dictionary to this norm.
        schedule: Courses of the learning rate, of k and of penalties.
        scaling: How activations are scaled: to mean 0 and length √D, to a mean square of 1, each token by itself, or
            not at all.
        centre: Where the decoder's bias begins.
        calibration_batches: Batches that set the thresholds of inference, at most, spread evenly over the validation
            split.
        embedding: An image encoder that has nothing to do with the model; `test` asks it which images look alike.
    """

    unit = "tokens"  # of which the progress bar counts how many a second
    is_random = True  # without a checkpoint there is nothing to measure

    def __init__(
        self,
        kinds: list[SAEFactory],
        sites: list[str] | None = None,
        target: str | None = None,
        expansions: list[float] | None = None,
        seeds: list[int] | None = None,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        max_norm: float = 1.0,
        schedule: Schedule | None = None,
        scaling: ScalingMode = "mean_norm",
        centre: Centre = "mean",
        calibration_batches: int = 64,
        embedding: Backbone | None = None,
    ) -> None:
        super().__init__()
        if not kinds:
            raise UserError("model.kinds is empty: name at least one kind of dictionary, such as BatchTopK")
        if not (0 < lr < math.inf and max_norm > 0):
            raise UserError(f"model.lr {lr} and model.max_norm {max_norm} must be positive")
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"model.betas {list(betas)} must lie between 0 and 1")
        if not all(0 < expansion < math.inf for expansion in expansions or ()):
            raise UserError(f"model.expansions {expansions}: latents per channel must be positive")
        if calibration_batches < 1:
            raise UserError(f"model.calibration_batches must be at least 1, got {calibration_batches}")
        self.kinds = kinds
        self.sites = sites
        self.target = target
        self.expansions = expansions or [8]
        self.seeds = seeds or [0]
        self.lr = lr
        self.betas = betas
        self.max_norm = max_norm
        self.schedule = schedule or Schedule()
        self.scaling: ScalingMode = scaling
        self.centre: Centre = centre
        self.calibration_batches = calibration_batches
        self.embedding = embedding
        self.dictionaries = nn.ModuleDict()
        self.names: dict[str, str] = {}  # a module's name may hold no dots, a site's does
        self.examiner: Examiner | None = None
        self.records: list[Record] = []
        self.features: dict[str, tuple[Features, Description]] = {}
        self.densities: dict[str, Tensor] = {}  # log histograms of the last validation
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))

    # ------------------------------------------------------------------------------------------------ building

    @property
    def data(self) -> ActivationDataModule:
        """The activations that are read."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ActivationDataModule):
            raise UserError(
                f"LitSAE reads activations: use LiveActivations or CachedActivations, not {type(data).__name__}"
            )
        return data

    def configure_model(self) -> None:
        """Build the dictionaries, once the data knows how wide its sites are."""
        if len(self.dictionaries):
            return
        data = self.data
        targets = [] if self.target is None else [self.target]
        sites = self.sites or [site for site in data.sites if site not in targets]
        widths = {site: data.width(site) for site in [*sites, *targets]}
        d_out = {} if self.target is None else {"d_out": widths[self.target]}
        for site, (number, kind), expansion, seed in product(sites, enumerate(self.kinds), self.expansions, self.seeds):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                sae: SAE = kind(widths[site], round(expansion * widths[site]), **d_out)
            name = f"{site}/{number}-{type(sae).__name__}-x{expansion:g}-s{seed}"
            if name in self.names.values():
                raise UserError(f"two dictionaries would be called {name}: name sites, expansions and seeds once each")
            if sae.w_enc.dtype.itemsize < 4:  # every selection compares sums
                raise UserError(
                    f"trainer.precision: dictionaries in {sae.w_enc.dtype} select at random; use bf16-mixed"
                )
            self.names[name.replace(".", "_")] = name
            self.dictionaries[name.replace(".", "_")] = Dictionary(sae, site, self.target, widths, self.scaling)

    def on_fit_start(self) -> None:
        """Say how long the training is, and begin with what the data knows of its sites, unless a run continues."""
        trainer: Any = self.trainer
        steps = total_steps(trainer)
        for _, dictionary in self._each():
            dictionary.sae.dead.expect(steps * trainer.accumulate_grad_batches * self.data.batch_size)
            if isinstance(dictionary.sae, SparseSAE) and trainer.accumulate_grad_batches == 1:
                dictionary.sae.take_shortcuts()
        if trainer.ckpt_path is not None:  # the checkpoint has it
            return
        used = {site for _, d in self._each() for site in (d.site, d.output_site)}
        known = {
            site: (self.data.statistics(site), self.data.sample(site).to(self.device))
            for site in self.data.sites
            if site in used
        }
        for _, dictionary in self._each():
            dictionary.fit(known, self.centre)

    def _each(self) -> list[tuple[str, Dictionary]]:
        """Return the dictionaries and their names."""
        found = []
        for key, dictionary in self.dictionaries.items():
            assert isinstance(dictionary, Dictionary)
            found.append((self.names[key], dictionary))
        return found

    def _descriptions(self) -> dict[str, dict[str, str | float | None]]:
        """Return what a checkpoint says of each dictionary."""
        return {key: describe(dictionary, self.names[key]) for key, dictionary in self.dictionaries.items()}

    # ------------------------------------------------------------------------------------------------ training

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return one Adam for each dictionary, all under one schedule."""
        optimizer = SideBySide(
            [
                DictionaryAdam(d.sae.parameter_groups(), lr=self.lr, betas=self.betas, max_norm=self.max_norm)
                for _, d in self._each()
            ]
        )
        total = total_steps(self.trainer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.schedule.learning_rate(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> Tensor:
        """Return the sum of all losses: no dictionary's gradient depends on another's."""
        losses, total = [], total_steps(self.trainer)
        for name, dictionary in self._each():
            dictionary.sae.k_factor = self.schedule.k(self.global_step, total)
            dictionary.sae.penalty_factor = self.schedule.penalty(self.global_step, total)
            objective = dictionary.objective(batch.activations)
            losses.append(objective.loss)
            self._log(name, dictionary, objective, batch)
        return torch.stack(losses).sum()

    def _log(self, name: str, dictionary: Dictionary, objective: Objective, batch: ActivationBatch) -> None:
        """Log means over all ranks, when they are due: they cost a collective."""
        trainer: Any = self.trainer
        if (self.global_step + 1) % trainer.log_every_n_steps:
            return
        x, target = dictionary.inputs(batch.activations)
        wanted = x if target is None else target  # (B, D)
        parts = [wanted.new_tensor(len(wanted)), wanted.square().sum(), objective.reconstruction, objective.l0]
        summed = all_sum(torch.cat([torch.stack(parts), wanted.sum(0)]))
        (n, squares, error, l0), total = summed[:4], summed[4:]
        variance = squares / n - (total / n).square().sum()  # of this global batch; validation pools over all
        if not torch.isfinite(error):
            raise UserError(f"{name}: the loss is not finite at step {self.global_step}: lower model.lr")
        world = self.trainer.world_size  # each rank's part is meant for a mean over ranks
        values = {"fvu": error / world / variance, "l0": l0 / world, "dead": len(dictionary.sae.dead.indices())}
        self.log_dict({f"train/{name}/{key}": value for key, value in values.items()}, rank_zero_only=True)

    def on_train_batch_end(self, outputs: Any, batch: ActivationBatch, batch_idx: int) -> None:
        """End at `max_steps` with a validation: Lightning would leave the last dictionaries without a threshold."""
        trainer: Any = self.trainer
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True

    # ---------------------------------------------------------------------------------------------- evaluation

    def on_validation_epoch_start(self) -> None:
        """Calibrate the thresholds of inference on held-out tokens, for this validation and for the checkpoint."""
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            return
        chosen = [d for _, d in self._each() if isinstance(d.sae, BatchTopK)]
        if chosen:
            calibrate([d.sae for d in chosen], partial(self._held_out, chosen))  # type: ignore[misc]  # chosen by kind

    def _held_out(self, dictionaries: list[Dictionary]) -> Iterator[list[Tensor]]:
        """Yield what each dictionary reads of held-out batches of this rank, the same ones on every call."""
        trainer: Any = self.trainer
        for batch in self.data.held_out(self.calibration_batches):
            moved = trainer.strategy.batch_to_device(batch)
            yield [dictionary.inputs(moved.activations)[0] for dictionary in dictionaries]

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        """Measure one batch; before any training there is no threshold to measure with."""
        if self.trainer.sanity_checking:
            return
        for _, dictionary in self._each():
            dictionary.measure(dictionary.infer(batch.activations))

    def on_validation_epoch_end(self) -> None:
        """Log the measures over all ranks."""
        if self.trainer.sanity_checking:
            return
        for name, dictionary in self._each():
            self.densities[name] = dictionary.density.compute().histogram
            values = dictionary.collect()
            self.log_dict({f"val/{name}/{key}": values[key] for key in MEASURES}, sync_dist=True)

    # ------------------------------------------------------------------------------------------------- testing

    def on_test_start(self) -> None:
        """Make room for everything that is counted."""
        embedding = None if self.embedding is None else Embedding(self.embedding)
        self.examiner = Examiner(dict(self._each()), self.data, embedding, self.device)

    def test_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        """Examine one batch."""
        assert self.examiner is not None
        self.examiner.update(batch)

    def on_test_epoch_end(self) -> None:
        """Turn what was counted over all ranks into records and features."""
        assert self.examiner is not None
        self.records, self.features = self.examiner.conclude(self.seed)
        self.examiner = None

    def predict_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        """Refuse: what a dictionary has to say of images is what a test writes."""
        raise UserError("dictionaries predict nothing: `test` writes their features")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the seed, and what `export` has to know."""
        checkpoint["seed"] = self.seed
        checkpoint["dictionaries"] = self._descriptions()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What is measured carries the seed of its training, and is what the configuration says."""
        stored = checkpoint.get("dictionaries")
        if not stored:
            raise UserError("the checkpoint holds no dictionaries: it was not written by a fit of LitSAE")
        other = "the checkpoint is of another configuration"
        ours = self._descriptions()
        for key in [*ours, *stored]:
            if key not in stored or key not in ours:
                has = ", ".join(found["name"] for found in stored.values())
                raise UserError(f"{other}: it has {has}, and model asks for {', '.join(self.names.values())}")
            for name, value in ours[key].items():
                if stored[key].get(name) != value:
                    now = f"{self.names[key]} now has the {name} {value}"
                    raise UserError(f"{other}: {now}, and had {stored[key].get(name)}")
