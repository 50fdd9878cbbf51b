"""Weights & Biases, where it is configured."""

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


def wandb_runs(trainer: Trainer) -> list[Any]:
    """Return the W&B runs of a trainer; recognised by name, since wandb need not be installed."""
    loggers: list[Any] = [logger for logger in trainer.loggers if type(logger).__name__ == "WandbLogger"]
    return [logger.experiment for logger in loggers]


def wandb_id(folder: Path) -> str:
    """Return the id of the W&B run that belongs to a run folder: drawn once, so that a restart continues its curves."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "wandb_id"
    with suppress(FileExistsError), path.open("x") as file:  # of several ranks only one creates it
        file.write(secrets.token_hex(8))
    return path.read_text()
