"""Kurtosis equals scipy's, in any batches and far from zero."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from scipy.stats import kurtosis
from torch import Tensor

from impact_lightning.metrics.kurtosis import Kurtosis
from impact_lightning.types import UserError
from tests.distributed import run_distributed
from tests.metrics.test_unit_bins import units

VARIED = [0, 1, 2, 3, 4, 5, 7]  # unit 6 is constant


def measured(*parts: Tensor) -> list[float]:
    metric = Kurtosis(8)
    for part in parts:
        metric.update(part)
    values: list[float] = metric.compute().tolist()
    return values


def by_hand(x: Tensor) -> list[float]:
    values = torch.full((8,), torch.nan, dtype=torch.float64)
    values[VARIED] = torch.from_numpy(kurtosis(x[:, VARIED].double().numpy(), axis=0, bias=True))
    result: list[float] = values.tolist()
    return result


@pytest.mark.parametrize("mean", [0.0, 1e6])  # sums of powers in float64 would be noise at 1e6
def test_equals_scipy_in_any_batches(mean: float) -> None:
    x = units() + mean
    expected = pytest.approx(by_hand(x), rel=1e-9, abs=1e-9, nan_ok=True)
    assert measured(x) == expected
    assert measured(x[211:], x[7:7], x[:3], x[3:211]) == expected
    assert measured(*x.split(1)) == expected
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    assert measured(*x[order].split(16)) == expected


def test_a_constant_unit_has_no_kurtosis() -> None:
    assert [math.isnan(value) for value in measured(*units().split(7))] == [k == 6 for k in range(8)]


def test_scale_changes_nothing() -> None:
    for scale in (2.0**-90, 4.0, 2.0**90):
        assert measured(scale * units()) == pytest.approx(measured(units()), rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_activations_are_summed_in_float64(dtype: torch.dtype) -> None:
    x = units().clamp(-100, 100).to(dtype)
    assert measured(x) == pytest.approx(by_hand(x), rel=1e-9, abs=1e-9, nan_ok=True)


def of_rank(rank: int, cut: int) -> list[float]:
    x = units() + 1e4
    return measured(x[:cut] if rank == 0 else x[cut:])


@pytest.mark.parametrize("cut", [7, 500])  # with 500, the second rank has only an empty batch
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    expected = pytest.approx(measured(units() + 1e4), rel=1e-11, abs=1e-11, nan_ok=True)
    assert run_distributed(of_rank, cut) == [expected] * 2


def test_merged_metrics_equal_the_whole() -> None:
    first, second = Kurtosis(8), Kurtosis(8)
    first.update(units()[:9])
    second.update(units()[9:])
    first.merge_state(second)
    assert first.compute().tolist() == pytest.approx(measured(units()), rel=1e-11, nan_ok=True)


def test_nothing_seen_is_nan() -> None:
    assert all(math.isnan(value) for value in measured())
    assert all(math.isnan(value) for value in measured(units()[:1]))


def test_refuses_what_is_no_number() -> None:
    with pytest.raises(UserError, match="not a number"):
        measured(torch.full((2, 8), math.inf))


def test_has_a_plot() -> None:
    metric = Kurtosis(8)
    metric.update(units())
    figure, axes = plt.subplots()
    metric.plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)
