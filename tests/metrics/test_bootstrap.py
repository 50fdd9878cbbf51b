"""Bootstrap totals do not depend on order, batches and ranks, and their intervals have the width of statistics."""

import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.bootstrap import BootstrapSums, interval_of_draws, interval_of_mean
from tests.distributed import run_distributed

N = 900


def quantities() -> Tensor:
    return torch.randn(N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3


def totals(*parts: Tensor, draws: int = 400) -> Tensor:
    metric = BootstrapSums(2, draws=draws)
    for part in parts:
        metric.update(quantities()[part], part)
    result: Tensor = metric.compute()
    return result


def test_the_first_totals_are_the_data_themselves() -> None:
    torch.testing.assert_close(totals(torch.arange(N))[0], quantities().sum(0))


def test_draws_do_not_depend_on_order_and_batches() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(totals(*order.split(70)), totals(torch.arange(N)), rtol=1e-12, atol=0)


def totals_of_rank(rank: int) -> list[list[float]]:
    return totals(torch.arange(rank, N, 2), draws=5).tolist()


def test_two_ranks_have_the_totals_of_one() -> None:
    one = totals(torch.arange(N), draws=5).tolist()
    for two in run_distributed(totals_of_rank):
        assert two == [pytest.approx(row, rel=1e-12) for row in one]


def test_intervals_have_the_width_of_a_normal_approximation() -> None:
    drawn = totals(torch.arange(N), draws=2000)
    mean = interval_of_draws(drawn[:, 0] / N)
    # of a mean of Poisson weights that are not divided by their sum, the weights' own spread is part
    spread = float(quantities()[:, 0].square().mean().sqrt()) / N**0.5
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * spread, rel=0.08)
    sizes = BootstrapSums(1, draws=2000)
    sizes.update(torch.ones(N, 1), torch.arange(N))
    of_ratio = interval_of_draws(drawn[:, 0] / sizes.compute()[:, 0])
    assert of_ratio.high - of_ratio.low == pytest.approx(2 * 1.96 * float(quantities()[:, 0].std()) / N**0.5, rel=0.08)


def test_the_interval_of_a_mean_has_the_width_of_a_normal_approximation() -> None:
    values = quantities()[:, 0]
    interval = interval_of_mean(values, what="latents")
    assert interval.low < values.mean() < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * float(values.std()) / N**0.5, rel=0.1)
    assert "latents" in interval.how
