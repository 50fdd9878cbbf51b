"""The command line; the only file that knows LightningCLI."""

import logging
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from impact_lightning.backbones.classifier import LitClassifier as LitClassifier  # imported: short names work
from impact_lightning.data.images import ImageData as ImageData
from impact_lightning.data.rooms import Rooms as Rooms
from impact_lightning.data.scenes import SceneData as SceneData
from impact_lightning.data.sprites import Sprites as Sprites
from impact_lightning.files import atomic_write
from impact_lightning.mistakes import explain, user_error_behind
from impact_lightning.training.checkpoint import AtomicCheckpointIO, Checkpoint
from impact_lightning.training.predictions import PredictionWriter
from impact_lightning.training.progress import Progress
from impact_lightning.training.rehearsal import is_rehearsal
from impact_lightning.training.results_writer import ResultsWriter
from impact_lightning.training.step_seed import StepSeed
from impact_lightning.training.throughput import Throughput
from impact_lightning.training.tracking import wandb_runs
from impact_lightning.types import UserError

DESCRIPTION = "Did sparsity make this vision transformer easier to understand?"


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


class CLI(LightningCLI):
    """Lightning's verbs, with our run folder, checkpoints, results and progress."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and everything that lives in it."""
        parser.add_argument("--run", type=str, default="runs/dev", help="folder of this run: everything it writes")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.link_arguments("run", "trainer.default_root_dir")
        parser.link_arguments("run", "checkpoint.dirpath", compute_fn=checkpoint_dir)
        parser.link_arguments("data.n_classes", "model.init_args.n_classes", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Let the configuration decide: Lightning would let the checkpoint's overrule the command line silently."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with our way of writing checkpoints, and CSV files unless a logger is configured."""
        run = self._get(self.config, "run")
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True):
            config["logger"] = CSVLogger(run, name="logs")
        config["plugins"] = [*_as_list(config.get("plugins")), AtomicCheckpointIO()]
        ours = [StepSeed(self._get(self.config, "seed_everything")), Throughput(), ResultsWriter(), PredictionWriter()]
        if config.get("enable_progress_bar") is not False:
            ours.append(Progress())
        config["callbacks"] = [*_as_list(config.get("callbacks")), *ours]
        return super().instantiate_trainer(**kwargs)

    def before_instantiate_classes(self) -> None:
        """Tie a W&B run to the run folder: a restart continues its curves."""
        logger = self._get(self.config, "trainer").get("logger")
        if getattr(logger, "class_path", "").endswith("WandbLogger"):
            run = Path(self._get(self.config, "run"))
            defaults = {"save_dir": str(run), "name": run.name, "id": str(run).strip("/").replace("/", "-")}
            for name, value in defaults.items():
                if logger.init_args.get(name) in (None, "."):
                    logger.init_args[name] = value
            run.mkdir(parents=True, exist_ok=True)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Resolve `last` and `best` to the files of this run."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "test":
            kwargs["verbose"] = False  # ResultsWriter shows the same numbers with their nulls and intervals
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # PredictionWriter has them
        kwargs["ckpt_path"] = self._checkpoint(subcommand, kwargs.get("ckpt_path"))
        return kwargs

    def _checkpoint(self, verb: str, wanted: Any) -> str | None:
        folder = Path(checkpoint_dir(self._get(self.config, "run")))
        if wanted is None:
            if verb == "fit" and (folder / "last.ckpt").exists() and not is_rehearsal(self.trainer):
                raise UserError(
                    f"{folder.parent} already holds a run: add `--ckpt_path last` to continue it, "
                    "or choose another folder with `--run`"
                )
            return None
        path = folder / f"{wanted}.ckpt" if wanted in ("last", "best") else Path(wanted)
        if path.is_file():
            return str(path)
        if verb == "fit" and wanted == "last":
            return None  # the first start of a run that is always started with `--ckpt_path last`
        raise UserError(f"--ckpt_path {wanted}: there is no file {path}")

    @rank_zero_only
    def before_fit(self) -> None:
        """Say what is trained, and remember when it began."""
        self._began = monotonic()
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        print(f"{type(self.model).__name__}: {trained:,} parameters are trained")

    def after_fit(self) -> None:
        """Say where things are."""
        self._say_where(f"{self._get(self.config, 'run')}/checkpoints/last.ckpt")

    @rank_zero_only
    def _say_where(self, checkpoint: str) -> None:
        if is_rehearsal(self.trainer):
            return
        metrics = self.trainer.callback_metrics
        shown = ", ".join(f"{name} {float(value):.4f}" for name, value in sorted(metrics.items()) if "val/" in name)
        trainer: Any = self.trainer
        speed = next(callback for callback in trainer.callbacks if isinstance(callback, Throughput))
        steps = self.trainer.global_step  # 0 where forked processes did the work
        took = timedelta(seconds=round(monotonic() - self._began))
        print(
            f"\nfitted {f'{steps:,} steps ' if steps else ''}in {took}"
            + (f" at {speed.images_per_second * self.trainer.world_size:,.0f} images/s" if speed.images else "")
            + (f", {speed.data_wait:.1%} waiting for data" if speed.images else "")
            + (f": {shown}" if shown else "")
            + f"\n  checkpoint  {checkpoint}\n  logs        {self._where_logs()}"
            + f"\n  config      {self._get(self.config, 'run')}/fit.yaml"
        )

    def _where_logs(self) -> str:
        logger = self.trainer.logger
        return str(getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None) or "none")


def _as_list(value: Any) -> list[Any]:
    """Return one, several or no values as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _quiet() -> None:
    """Keep what dependencies say of themselves out of the terminal; what concerns the run's results still shows."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips, "GPU available", what was not set
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # lightning 2.6 on torch >= 2.13
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")  # a short run; the results show
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning|jsonargparse")


def main(args: ArgsType = None) -> None:
    """Run a verb; tests and notebooks call `main(["fit", ...])`."""
    words = sys.argv[1:] if args is None else args if isinstance(args, list) else []
    _quiet()
    try:
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
    except ValueError as error:  # UserError is one; jsonargparse wraps those that a class raises into its own
        mistake = user_error_behind(error)
        if mistake is None:
            raise
        print(f"error: {explain(str(mistake), words)}", file=sys.stderr)
        sys.exit(2)
