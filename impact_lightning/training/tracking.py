"""Weights & Biases, where it is configured."""

from typing import Any

from lightning.pytorch import Trainer


def wandb_runs(trainer: Trainer) -> list[Any]:
    """Return the W&B runs of a trainer; recognised by name, since wandb need not be installed."""
    loggers: list[Any] = [logger for logger in trainer.loggers if type(logger).__name__ == "WandbLogger"]
    return [logger.experiment for logger in loggers]
