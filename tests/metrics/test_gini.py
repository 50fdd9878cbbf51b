"""The Gini index is the mean difference of pairs over twice the mean, over units and over images."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.gini import Ginis, LifetimeGini, MeanGini, PopulationGini, gini
from impact_lightning.metrics.unit_bins import BinCounts, unit_edges
from impact_lightning.types import UserError
from tests.distributed import run_distributed
from tests.metrics.test_unit_bins import counted, units


def images(n: int = 60) -> Tensor:
    x = units(n)
    x[3] = -x[3].abs()  # an image on which no unit is active
    return torch.cat([x, -x[:, :1].abs()], 1)  # and a unit that never is


def by_hand(x: Tensor) -> list[float]:
    """Gini index of each row, from all pairs."""
    x = x.double().clamp_min(0)
    pairs = (x[:, :, None] - x[:, None, :]).abs().sum((1, 2))
    return (pairs / (2 * x.shape[1] * x.sum(1))).tolist()


def lifetime(x: Tensor, *parts: slice, sample: Tensor | None = None, bins: int = 1024) -> Ginis:
    edges = unit_edges(x if sample is None else sample, bins)
    metric = LifetimeGini(edges, counted(x, edges))
    for part in parts or (slice(None),):
        metric.update(x[part])
    result = metric.compute()
    assert isinstance(result, Ginis)
    return result


def population(*parts: Tensor) -> MeanGini:
    metric = PopulationGini()
    for part in parts:
        metric.update(part)
    result = metric.compute()
    assert isinstance(result, MeanGini)
    return result


def test_rows_equal_the_sum_over_pairs() -> None:
    assert gini(images()).tolist() == pytest.approx(by_hand(images()), abs=1e-9, nan_ok=True)
    assert gini(images())[3].isnan()


def test_one_of_n_has_nearly_everything() -> None:
    assert gini(torch.eye(5)).tolist() == pytest.approx([0.8] * 5, abs=1e-12)
    assert gini(torch.ones(1, 5)).tolist() == [0.0]


def test_population_is_the_mean_over_images_that_have_one() -> None:
    values = [value for value in by_hand(images()) if not math.isnan(value)]
    result = population(images()[40:], images()[:0], images()[:40])
    assert result.gini.item() == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert result.n.item() == len(values) == 59


def test_lifetime_equals_the_sum_over_pairs() -> None:
    result = lifetime(images())
    assert result.gini.tolist() == pytest.approx(by_hand(images().T), abs=1e-9, nan_ok=True)
    assert result.gini.isnan().tolist() == result.error.isnan().tolist() == [False] * 8 + [True]
    assert result.error[:8].tolist() == [0.0] * 8


@pytest.mark.parametrize("bins", [8, 32, 256])
def test_the_exact_index_is_within_the_error(bins: int) -> None:
    x = units(2000, seed=4)
    exact = gini(x.T)
    for sample in (x[:200], units(200, seed=9)):  # of these images, and of others
        result = lifetime(x, sample=sample, bins=bins)
        assert (exact - result.gini >= -1e-12).all()
        assert (exact - result.gini <= result.error + 1e-12).all()


def test_scale_changes_nothing() -> None:
    assert gini(4 * images()).tolist() == pytest.approx(gini(images()).tolist(), abs=1e-12, nan_ok=True)
    expected = pytest.approx(lifetime(images()).gini.tolist(), abs=1e-12, nan_ok=True)
    assert lifetime(4 * images()).gini.tolist() == expected


def test_batches_in_any_order_equal_the_whole() -> None:
    x = images()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    for values in (lifetime(x, slice(40, 60), slice(7, 7), slice(0, 40)), lifetime(x[order])):
        assert values.gini.tolist() == pytest.approx(lifetime(x).gini.tolist(), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_activations_are_those_numbers(dtype: torch.dtype) -> None:
    x = images().to(dtype)
    assert lifetime(x).gini.tolist() == pytest.approx(by_hand(x.T), abs=1e-9, nan_ok=True)
    assert population(x).gini.item() == pytest.approx(population(x.float()).gini.item(), abs=1e-12)


def of_rank(rank: int, cut: int) -> tuple[list[float], float]:
    x = images()[:cut] if rank == 0 else images()[cut:]
    counts = BinCounts(unit_edges(images()))
    counts.update(x)
    metric = LifetimeGini(counts.edges, counts.compute())
    metric.update(x)
    return metric.compute().gini[:8].tolist(), population(x).gini.item()


@pytest.mark.parametrize("cut", [7, 60])  # with 60, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    for of_units, of_images in run_distributed(of_rank, cut):
        assert of_units == pytest.approx(lifetime(images()).gini[:8].tolist(), rel=1e-12)
        assert of_images == pytest.approx(population(images()).gini.item(), rel=1e-12)


def test_nothing_seen_is_nan() -> None:
    assert population().gini.isnan()
    assert population(torch.zeros(3, 4)).gini.isnan()


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="saw 50 images"):
        lifetime(images(), slice(0, 50))
    with pytest.raises(UserError, match="not a number"):
        population(torch.tensor([[math.nan]]))


def test_have_plots() -> None:
    edges = unit_edges(images())
    for metric, value in (
        (PopulationGini(), population(images()).gini),
        (LifetimeGini(edges, counted(images(), edges)), lifetime(images())),
    ):
        figure, axes = plt.subplots()
        metric.plot(value, ax=axes)  # type: ignore[arg-type]
        assert axes.has_data()
        plt.close(figure)
