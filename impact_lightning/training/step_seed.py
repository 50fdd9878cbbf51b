"""Randomness inside a training step that is a function of the step alone, so that a resumed run draws the same."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seed dropout, mixup and every other draw of a training step by (seed, step, rank).

    Nothing has to be saved: a run that is killed and resumed continues with the numbers it would have drawn.

    Args:
        seed: Another seed gives other draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed all generators; the batch counter, unlike the step, also moves under gradient accumulation."""
        batches = trainer.fit_loop.total_batch_idx + 1
        words = np.random.SeedSequence([self.seed, batches, trainer.global_rank]).generate_state(2, np.uint64)
        random.seed(int(words[0]))
        np.random.seed(int(words[0] >> np.uint64(32)))
        torch.manual_seed(int(words[1] >> np.uint64(1)))  # torch takes 63 bits
