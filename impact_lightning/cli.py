"""The command line; the only file that knows LightningCLI."""

import logging
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from signal import SIGTERM
from time import monotonic
from typing import Any

import yaml
from jsonargparse import ArgumentParser, auto_cli
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import is_torchelastic_launched
from torch.multiprocessing.spawn import ProcessRaisedException

from impact_lightning.activations.cached import CachedActivations as CachedActivations
from impact_lightning.activations.extract import extract
from impact_lightning.activations.live import LiveActivations as LiveActivations
from impact_lightning.attribution.lit_attribution import LitAttribution as LitAttribution
from impact_lightning.backbones.classifier import LitClassifier as LitClassifier  # imported: short names work
from impact_lightning.circuits.lit_circuit import LitCircuit as LitCircuit
from impact_lightning.circuits.task_data import TaskData as TaskData
from impact_lightning.data.images import ImageData as ImageData
from impact_lightning.data.rooms import Rooms as Rooms
from impact_lightning.data.scene_files import DSpritesFile as DSpritesFile
from impact_lightning.data.scene_files import Shapes3DFile as Shapes3DFile
from impact_lightning.data.scenes import SceneData as SceneData
from impact_lightning.data.sprites import Sprites as Sprites
from impact_lightning.data.transforms import FlipCrop as FlipCrop
from impact_lightning.data.transforms import RandomResizedCrop as RandomResizedCrop
from impact_lightning.files import atomic_write
from impact_lightning.impact import impact
from impact_lightning.mistakes import explain, user_error_behind
from impact_lightning.neurons.lit_neurons import LitNeurons as LitNeurons
from impact_lightning.report.verb import report
from impact_lightning.sae.batch_topk import BatchTopK as BatchTopK
from impact_lightning.sae.export import export
from impact_lightning.sae.gated import Gated as Gated
from impact_lightning.sae.jump_relu import JumpReLU as JumpReLU
from impact_lightning.sae.lit_sae import LitSAE as LitSAE
from impact_lightning.sae.matryoshka import Matryoshka as Matryoshka
from impact_lightning.sae.relu import ReLU as ReLU
from impact_lightning.sae.topk import TopK as TopK
from impact_lightning.sparsity.keep_masks import KeepMasks
from impact_lightning.sparsity.prune import prune
from impact_lightning.sparsity.weight_sparse import WeightSparse as WeightSparse
from impact_lightning.suite.sources import Given as Given
from impact_lightning.suite.sources import Pruned as Pruned
from impact_lightning.suite.sources import Trained as Trained
from impact_lightning.suite.sources import Tuned as Tuned
from impact_lightning.training.checkpoint import AtomicCheckpointIO, Checkpoint
from impact_lightning.training.circuit_files import CircuitFiles
from impact_lightning.training.feature_pictures import FeaturePictures
from impact_lightning.training.map_files import MapFiles
from impact_lightning.training.predictions import PredictionWriter
from impact_lightning.training.progress import Progress
from impact_lightning.training.rehearsal import is_rehearsal
from impact_lightning.training.results_writer import ResultsWriter
from impact_lightning.training.step_seed import StepSeed
from impact_lightning.training.throughput import Throughput, unit
from impact_lightning.training.tracking import wandb_id, wandb_runs
from impact_lightning.training.unit_pictures import UnitPictures
from impact_lightning.types import UserError

VERBS: dict[str, Any] = {"impact": impact, "report": report, "extract": extract, "export": export, "prune": prune}
DESCRIPTION = f"Did sparsity make this vision transformer easier to understand? Also: {', '.join(VERBS)}."


class SaveConfig(SaveConfigCallback):
    """Write the resolved configuration into the run folder, one file a verb, and into the W&B run."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write `fit.yaml`, `test.yaml`, ...; called on rank 0 only."""
        if is_rehearsal(trainer):
            return
        text = self.parser.dump(self.config, skip_unset=False)
        with atomic_write(Path(trainer.default_root_dir) / f"{TrainerFn(stage).value}.yaml") as file:
            file.write(text.encode())
        for run in wandb_runs(trainer):
            run.config.update(yaml.safe_load(text), allow_val_change=True)


def checkpoint_dir(run: str) -> str:  # module level: links are pickled when ranks are spawned
    """Return the folder of a run's checkpoints."""
    return f"{run}/checkpoints"


class Parser(LightningArgumentParser):
    """Ends a mistake of the user in one message."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]  # narrower upstream
        """Leave out the usage, which is pages long."""
        raise UserError(message) from (user_error_behind(ex) or ex)


class VerbParser(ArgumentParser):
    """The same for verbs that are plain functions."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]  # narrower upstream
        """Leave out the usage, which is pages long."""
        raise UserError(message) from (user_error_behind(ex) or ex)


class CLI(LightningCLI):
    """Lightning's verbs, with our run folder, checkpoints, results and progress."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and everything that lives in it."""
        # not --run: torchrun takes that for an abbreviation of one of its own options
        parser.add_argument("--dir", type=str, default="runs/dev", help="folder of this run: everything it writes")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.link_arguments("dir", "trainer.default_root_dir")
        parser.link_arguments("dir", "checkpoint.dirpath", compute_fn=checkpoint_dir)
        parser.link_arguments("data.n_classes", "model.init_args.n_classes", apply_on="instantiate")

    @property
    def folder(self) -> Path:
        """The folder of this run."""
        return Path(self._get(self.config, "dir"))

    @property
    def verb(self) -> str:
        """What is to be done: fit, validate, test or predict."""
        return str(self.config["subcommand"])

    def _set_seed(self) -> None:
        """Seed everything, or say what is wrong with the seed."""
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def _parse_ckpt_path(self) -> None:
        """Let the configuration decide: Lightning would let the checkpoint's overrule the command line silently."""

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work before anything is built, and tie a W&B run to the run folder."""
        if not self._get(self.config, "dir"):
            raise UserError("--dir must name the folder of the run")
        self.ckpt_path = self._checkpoint(self._get(self.config, "ckpt_path"))
        for logger in _as_list(self._get(self.config, "trainer").get("logger")):
            if getattr(logger, "class_path", "").endswith("WandbLogger"):
                identity = wandb_id(self.folder)
                for name, value in {"save_dir": str(self.folder), "name": self.folder.name, "id": identity}.items():
                    if logger.init_args.get(name) in (None, "."):
                        logger.init_args[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with our checkpoints and callbacks; a fit without a logger writes CSV files."""
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True):
            # The number is fixed here: left to the logger, forked ranks would each count on.
            number = len(list((self.folder / "logs").glob("version_*")))
            config["logger"] = CSVLogger(str(self.folder), name="logs", version=number) if self.verb == "fit" else False
        if config.get("log_every_n_steps") == 0:
            raise UserError("trainer.log_every_n_steps must be at least 1; trainer.logger: false logs nothing")
        config["plugins"] = [*_as_list(config.get("plugins")), AtomicCheckpointIO()]
        ours = [StepSeed(self._get(self.config, "seed_everything")), Throughput(), ResultsWriter(), PredictionWriter()]
        ours += [KeepMasks(), FeaturePictures(), UnitPictures(), CircuitFiles(), MapFiles()]
        if config.get("enable_progress_bar") is not False:
            ours.append(Progress())
        config["callbacks"] = [*_as_list(config.get("callbacks")), *ours]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, ArithmeticError) as error:
            raise UserError(f"trainer: {error}") from error
        _refuse_strangers(trainer)
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Hand over the checkpoint that was found, and leave the showing of results to our callbacks."""
        quiet = {"verbose": False}
        ours = {"validate": quiet, "test": quiet, "predict": {"return_predictions": False}}.get(subcommand, {})
        kwargs = {**super()._prepare_subcommand_kwargs(subcommand), **ours, "ckpt_path": self.ckpt_path}
        if self.ckpt_path is None and subcommand != "fit" and getattr(self.model, "is_random", False):
            raise UserError(f"{subcommand} would measure random weights: add `--ckpt_path best` or `--ckpt_path FILE`")
        return kwargs

    def _checkpoint(self, wanted: Any) -> str | None:
        """Return the file that `last`, `best` or a path stands for."""
        folder = Path(checkpoint_dir(str(self.folder)))
        if wanted is None:
            is_new = not (folder / "last.ckpt").exists() or self._get(self.config, "trainer").get("fast_dev_run")
            if self.verb == "fit" and not is_new:
                raise UserError(
                    f"{self.folder} already holds a run: add `--ckpt_path last` to continue it, "
                    "or choose another folder with `--dir`"
                )
            return None
        path = folder / f"{wanted}.ckpt" if wanted in ("last", "best") else Path(wanted)
        if path.is_file():
            return str(path)
        if self.verb == "fit" and wanted == "last":
            return None  # the first start of a run that is always started with `--ckpt_path last`
        raise UserError(f"--ckpt_path {wanted}: there is no file {path}")

    @rank_zero_only
    def before_fit(self) -> None:
        """Say what is trained, and remember when it began."""
        self._began = monotonic()
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        if trained:  # else the module waits for the data before it builds anything
            print(f"{type(self.model).__name__}: {trained:,} parameters are trained")

    @rank_zero_only
    def after_fit(self) -> None:
        """Say how it went, and where things are."""
        trainer: Any = self.trainer
        if is_rehearsal(trainer):
            return
        speed = next(callback for callback in trainer.callbacks if isinstance(callback, Throughput))
        steps = f"{trainer.global_step:,} steps " if trainer.global_step else ""  # 0 where forked processes trained
        said = [f"fitted {steps}in {timedelta(seconds=round(monotonic() - self._began))}"]
        if speed.samples:
            said[0] += f" at {speed.per_second * trainer.world_size:,.0f} {unit(self.model)}/s"
            said.append(f"{speed.data_wait:.1%} waiting for data")
        logs = next((logger.log_dir for logger in trainer.loggers if isinstance(logger, CSVLogger)), None)
        print("\n" + ", ".join(said))
        self._say_scores()
        print(f"  checkpoint  {checkpoint_dir(str(self.folder))}/last.ckpt")
        print(f"  logs        {logs or ', '.join(type(logger).__name__ for logger in trainer.loggers) or 'none'}")
        print(f"  config      {self.folder}/fit.yaml")

    @rank_zero_only
    def after_validate(self) -> None:
        """Say the scores, a line for each model: Lightning's table cuts their names."""
        print()
        self._say_scores()

    def _say_scores(self) -> None:
        found = self.trainer.callback_metrics.items()
        scores = {name: float(value) for name, value in sorted(found) if name.startswith("val/")}
        for group in dict.fromkeys(name.rpartition("/")[0] for name in scores):
            values = [f"{n.rpartition('/')[2]} {v:.4f}" for n, v in scores.items() if n.rpartition("/")[0] == group]
            print(f"  {group}  " + "  ".join(values))


def _refuse_strangers(trainer: Trainer) -> None:
    """Refuse processes of torchrun that do not know of each other: each would do everything, in the same folder."""
    if not is_torchelastic_launched():
        return  # then the trainer starts its ranks itself, or SLURM has
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != trainer.world_size:
        raise UserError(
            f"torchrun has started {started} processes, and the trainer has {trainer.world_size}: set trainer.devices "
            "to the processes of a machine, and trainer.num_nodes to the machines"
        )


def _as_list(value: Any) -> list[Any]:
    """Return one, several or no values as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _quiet() -> None:
    """Keep what dependencies say of themselves out of the terminal; what concerns the run's results still shows."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips, "GPU available", what was not set
    for chatty in ("seed", "distributed"):
        logging.getLogger(f"lightning.fabric.utilities.{chatty}").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # lightning 2.6 on torch >= 2.13
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")  # models that are only read
    warnings.filterwarnings("ignore", ".*dataloader is not resumable.*")  # resume is exact: tests compare bits
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # a short run; the results show
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning|jsonargparse")


def flagged(words: list[str]) -> list[str]:
    """Let `--dry_run` stand alone: the parser wants a value behind every option."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return [f"{a}=true" if a == "--dry_run" and b not in ("true", "false") else a for a, b in pairs]


def main(args: ArgsType = None) -> None:
    """Run a verb; tests and notebooks call `main(["fit", ...])`."""
    words = sys.argv[1:] if args is None else args if isinstance(args, list) else []
    _quiet()
    try:
        if words and words[0] in VERBS:
            auto_cli(VERBS, args=flagged(words), parser_class=VerbParser, prog="python -m impact_lightning")
            return
        CLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={"description": DESCRIPTION, "prog": "python -m impact_lightning"},
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
            trainer_defaults={"enable_model_summary": False},
            args=args,
        )
    except SIGTERMException:  # it has no code of its own, and a run that was stopped is not one that has ended well
        raise SystemExit(128 + SIGTERM) from None
    except (ValueError, OSError, MisconfigurationException, ProcessRaisedException) as error:
        message = explain(error, words)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
