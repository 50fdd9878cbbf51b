"""Densities are counts over tokens, and every summary of them states how many tokens there were."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.density import Densities, FiringDensity
from tests.distributed import run_distributed

RATES = torch.tensor([0.0, 0.01, 0.1, 0.3, 1.0])


def some_codes(n: int = 300) -> Tensor:
    return (torch.rand(n, 5, generator=torch.Generator().manual_seed(0)) < RATES).float() * 1.5


def measured(*parts: Tensor, ultra_low: float = 0.05) -> Densities:
    metric = FiringDensity(5, ultra_low=ultra_low)
    for part in parts:
        metric.update(part)
    result = metric.compute()
    assert isinstance(result, Densities)
    return result


def numbers(densities: Densities) -> list[list[float]]:
    return [part.reshape(-1).tolist() for part in densities]


def test_equals_numpy() -> None:
    result, density = measured(some_codes()), (some_codes().numpy() != 0).mean(0)
    assert result.density.tolist() == pytest.approx(density.tolist())
    expected = np.histogram(np.log10(density[density > 0]), np.linspace(-8, 0, 81))[0]
    assert result.histogram.tolist() == expected.tolist()


def test_each_latent_belongs_to_its_group() -> None:
    result = measured(some_codes())
    fractions = (result.dead, result.ultra_low, result.above_1_percent, result.above_10_percent)
    density = result.density
    assert [round(float(f) * 5) for f in fractions] == [1, 1, int((density > 0.01).sum()), int((density > 0.1).sum())]


def test_a_density_below_the_histogram_falls_in_its_first_bin() -> None:
    metric = FiringDensity(1)
    metric.fired, metric.tokens = torch.tensor([1]), torch.tensor(10**10)
    metric.update(torch.zeros(0, 1))
    assert metric.compute().histogram[0] == 1


def test_batches_in_any_order_equal_the_whole() -> None:
    codes = some_codes()
    parts = (codes[200:].reshape(10, 10, 5), codes[:0], codes[:200])
    assert numbers(measured(*parts)) == numbers(measured(codes))


def test_half_codes_count_the_same() -> None:
    assert numbers(measured(some_codes().half())) == numbers(measured(some_codes()))


def of_rank(rank: int, cut: int) -> list[list[float]]:
    part = some_codes()[:cut] if rank == 0 else some_codes()[cut:]
    return numbers(measured(part) if len(part) else measured())


@pytest.mark.parametrize("cut", [7, 300])  # with 300, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [numbers(measured(some_codes()))] * 2


def test_before_any_token_no_latent_is_dead() -> None:
    assert math.isnan(measured().dead)
    assert measured().n == 0
