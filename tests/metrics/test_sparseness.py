"""Sparseness equals its definition in numpy, over images and over units."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.sparseness import LifetimeSparseness, MeanSparseness, PopulationSparseness, Sparseness
from impact_lightning.types import UserError
from tests.distributed import run_distributed
from tests.metrics.test_gini import images


def lifetime(*parts: Tensor) -> Sparseness:
    metric = LifetimeSparseness(9)
    for part in parts:
        metric.update(part)
    result = metric.compute()
    assert isinstance(result, Sparseness)
    return result


def population(*parts: Tensor) -> MeanSparseness:
    metric = PopulationSparseness()
    for part in parts:
        metric.update(part)
    result = metric.compute()
    assert isinstance(result, MeanSparseness)
    return result


def by_hand(x: Tensor) -> list[list[float]]:
    """Treves-Rolls and Hoyer of each column."""
    r = np.maximum(x.double().numpy(), 0)
    n = len(r)
    with np.errstate(invalid="ignore"):
        a = r.mean(0) ** 2 / (r**2).mean(0)
        norms = np.abs(r).sum(0) / np.linalg.norm(r, axis=0)
    return [((1 - a) / (1 - 1 / n)).tolist(), ((math.sqrt(n) - norms) / (math.sqrt(n) - 1)).tolist()]


def numbers(scores: Sparseness) -> list[float]:
    return [value for score in scores for value in score.tolist()]


def test_lifetime_equals_numpy() -> None:
    result = lifetime(images())
    for score, expected in zip(result, by_hand(images()), strict=True):
        assert score.tolist() == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert score.isnan().tolist() == [False] * 8 + [True]  # the last unit is never active


def test_population_is_the_mean_of_images_on_which_something_is_active() -> None:
    result = population(images()[40:], images()[:0], images()[:40])
    treves_rolls, hoyer = np.nanmean(by_hand(images().T), axis=1)
    assert result.treves_rolls.item() == pytest.approx(treves_rolls, abs=1e-9)
    assert result.hoyer.item() == pytest.approx(hoyer, abs=1e-9)
    assert result.n.item() == 59


def test_from_none_to_all() -> None:
    x = torch.zeros(4, 9)
    x[:, 0], x[2, 1] = 0.1, 0.1
    result = lifetime(x)
    for score in result:
        assert score[:2].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_one_image_has_no_lifetime() -> None:
    assert all(score.isnan().all() for score in lifetime(images()[:1]))
    assert all(score.isnan().all() for score in lifetime())
    assert population(torch.ones(3, 1)).n == 0


def test_scale_changes_nothing() -> None:
    expected = pytest.approx(numbers(lifetime(images())), abs=1e-12, nan_ok=True)
    assert numbers(lifetime(4e10 * images().double().float())) == pytest.approx(
        numbers(lifetime(images())), abs=1e-6, nan_ok=True
    )
    assert numbers(lifetime(4 * images())) == expected


def test_batches_in_any_order_equal_the_whole() -> None:
    x = images()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    for result in (lifetime(x[40:], x[:0], x[:40]), lifetime(x[order])):
        assert numbers(result) == pytest.approx(numbers(lifetime(x)), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_activations_are_summed_in_float64(dtype: torch.dtype) -> None:
    x = images().to(dtype)
    assert lifetime(x).hoyer.tolist() == pytest.approx(by_hand(x)[1], abs=1e-9, nan_ok=True)


def of_rank(rank: int, cut: int) -> list[float]:
    x = images()[:cut] if rank == 0 else images()[cut:]
    of_units, of_images = lifetime(x), population(x)
    return [*of_units.treves_rolls[:8].tolist(), *of_units.hoyer[:8].tolist(), *(float(value) for value in of_images)]


@pytest.mark.parametrize("cut", [7, 60])  # with 60, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [pytest.approx(of_rank(0, 60), rel=1e-12)] * 2


def test_merged_metrics_equal_the_whole() -> None:
    first, second = LifetimeSparseness(9), LifetimeSparseness(9)
    first.update(images()[:9])
    second.update(images()[9:])
    first.merge_state(second)
    assert numbers(first.compute()) == pytest.approx(numbers(lifetime(images())), abs=1e-12, nan_ok=True)


def test_refuses_what_is_no_number() -> None:
    with pytest.raises(UserError, match="not a number"):
        lifetime(torch.full((2, 9), math.nan))
    with pytest.raises(UserError, match="9 units"):
        lifetime(torch.ones(2, 3))


def test_have_plots() -> None:
    for metric in (LifetimeSparseness(9), PopulationSparseness()):
        figure, axes = plt.subplots()
        metric.update(images())
        metric.plot(ax=axes)
        assert axes.has_data()
        plt.close(figure)
