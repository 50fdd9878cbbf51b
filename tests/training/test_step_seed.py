"""The draws of a training step depend on seed, batch and rank, and on nothing else."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from impact_lightning.training.step_seed import StepSeed


def draws(seed: int, batch: int, rank: int) -> tuple[float, float, float]:
    trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=batch), global_rank=rank)
    module: Any = None
    StepSeed(seed).on_train_batch_start(trainer, module, None, 0)
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_same_step_draws_the_same_whatever_was_drawn_before() -> None:
    first = draws(0, 5, 0)
    torch.rand(7)
    random.random()
    assert draws(0, 5, 0) == first


def test_another_seed_batch_or_rank_draws_otherwise() -> None:
    all_draws = [draws(seed, batch, rank) for seed in (0, 1) for batch in (0, 1, 2) for rank in (0, 1)]
    for one_generator in zip(*all_draws, strict=True):
        assert len(set(one_generator)) == len(all_draws)
