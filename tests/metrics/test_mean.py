"""ExactMean is the mean, and the same to the last bit in any order and on any number of ranks."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.metrics import ExactMean
from tests.distributed import run_distributed


def mean_of(*parts: Tensor) -> float:
    metric = ExactMean()
    for part in parts:
        metric.update(part)
    return float(metric.compute())


def values(n: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0)).exp()


def test_equals_numpy_in_float64() -> None:
    x = values(1001)
    assert mean_of(x) == pytest.approx(np.mean(x.double().numpy()), abs=2**-32)


def test_order_and_batch_size_do_not_move_a_bit() -> None:
    x = values(1001)
    shuffled = x[torch.randperm(1001, generator=torch.Generator().manual_seed(1))]
    assert mean_of(x) == mean_of(*shuffled.split(7)) == mean_of(x.flip(0)[:500], x.flip(0)[500:])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_value_that_cannot_be_summed_makes_the_mean_nan(bad: float) -> None:
    assert math.isnan(mean_of(torch.tensor([1.0, bad])))


def test_the_mean_of_nothing_is_nan() -> None:
    assert math.isnan(mean_of())
    assert math.isnan(mean_of(torch.zeros(0)))


def of_rank(rank: int, x: Tensor) -> float:
    return mean_of(x[:3]) if rank == 0 else mean_of(x[3:])


def test_two_uneven_ranks_equal_one() -> None:
    assert run_distributed(of_rank, values(100)) == [mean_of(values(100))] * 2


def of_rank_without_data(rank: int, x: Tensor) -> float:
    return mean_of(x) if rank == 0 else mean_of()


def test_a_rank_without_data_changes_nothing() -> None:
    assert run_distributed(of_rank_without_data, values(100)) == [mean_of(values(100))] * 2
