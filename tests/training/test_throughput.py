"""Throughput counts images and waiting, after a warm-up."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from impact_lightning.training.throughput import Throughput


def test_counts_images_and_the_time_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    logged: dict[str, float] = {}
    trainer: Any = SimpleNamespace(global_step=1, log_every_n_steps=1, world_size=2)
    module: Any = SimpleNamespace(log_dict=lambda values, **_: logged.update(values))
    callback = Throughput(skip=1)
    callback.on_train_epoch_start(trainer, module)
    for wait, work in ((9.0, 9.0), (1.0, 3.0), (1.0, 3.0)):  # the first batch is the warm-up
        clock[0] += wait
        callback.on_train_batch_start(trainer, module, None, 0)
        clock[0] += work
        callback.on_train_batch_end(trainer, module, None, (torch.zeros(1), torch.zeros(10)), 0)
    assert callback.per_second == pytest.approx(20 / 8)
    assert callback.data_wait == pytest.approx(2 / 8)
    assert logged == {"train/images_per_s": pytest.approx(5.0), "train/data_wait": pytest.approx(0.25)}


def test_before_the_warm_up_there_is_no_rate() -> None:
    assert Throughput().per_second == Throughput().data_wait == 0.0
