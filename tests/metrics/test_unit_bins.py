"""Bins hold every image once, values that images share have bins of their own, and the rest are equally full."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.unit_bins import (
    TINY,
    BinCounts,
    bins_at,
    checked,
    checked_labels,
    is_wide,
    midranks,
    unit_bins,
    unit_edges,
    widest,
)
from impact_lightning.types import UserError
from tests.distributed import run_distributed


def units(n: int = 500, seed: int = 0) -> Tensor:
    """Units of every shape `(n, 8)`."""
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
    x[:, 1] = x[:, 1].relu()  # half zeros
    x[:, 2] = (x[:, 2] - 1.5).relu()  # nearly all zeros
    x[:, 3] = torch.nn.functional.gelu(x[:, 3])
    x[:, 4] = x[:, 4].bfloat16()  # many values that some images share
    x[:, 5] = (3 * x[:, 5]).round()  # few values
    x[:, 6] = 0.1
    x[:, 7] = torch.tan(x[:, 7])  # heavy tails
    return x


def counted(x: Tensor, edges: Tensor) -> Tensor:
    metric = BinCounts(edges)
    metric.update(x)
    counts = metric.compute()
    assert isinstance(counts, Tensor)
    return counts


@pytest.mark.parametrize("bins", [8, 9, 33, 256, 1024])
def test_edges_ascend_to_their_infinite_rest(bins: int) -> None:
    edges = unit_edges(units(), bins)
    assert edges.shape == (8, bins - 1)
    assert edges.dtype == torch.float32
    is_pad = edges == torch.inf
    assert ((edges[:, 1:] > edges[:, :-1]) | (is_pad[:, 1:])).all()
    assert (edges == 0).sum(1).tolist() == [1] * 8
    assert (edges == torch.tensor(-TINY)).sum(1).tolist() == [1] * 8


def test_bins_are_those_of_numpy() -> None:
    x, edges = units(), unit_edges(units(seed=1), 64)
    expected = [np.digitize(x[:, k].numpy(), edges[k].numpy(), right=True).tolist() for k in range(8)]
    bins = unit_bins(edges, x)
    assert bins.tolist() == expected
    k = torch.arange(8)[:, None].expand_as(bins)
    assert bins_at(edges, k.flatten(), x.T.flatten()).equal(bins.flatten())
    counts = [np.bincount(row, minlength=64).tolist() for row in expected]
    assert counted(x, edges).tolist() == counts


@pytest.mark.parametrize("n_edges", range(1, 9))
def test_single_values_find_their_bins_among_any_number_of_edges(n_edges: int) -> None:
    edges = torch.arange(n_edges, dtype=torch.float32)[None]
    x = torch.arange(-1, n_edges + 1, 0.5)
    at = bins_at(edges, torch.zeros(len(x), dtype=torch.int64), x)
    assert at.equal(torch.searchsorted(edges[0], x))


@pytest.mark.parametrize("n", [1, 2, 7, 510, 1000])
def test_every_bin_of_a_small_sample_holds_one_value(n: int) -> None:
    x, edges = units(n), unit_edges(units(n))
    assert widest(edges, counted(x, edges)).tolist() == [0] * 8
    for k, bins in enumerate(unit_bins(edges, x).tolist()):
        assert len(set(bins)) == len(x[:, k].unique())  # and no two values share one


def test_few_values_of_many_images_have_bins_of_their_own() -> None:
    x = torch.randint(-250, 250, (5000, 2), generator=torch.Generator().manual_seed(0)).float()
    edges = unit_edges(x)
    assert widest(edges, counted(x, edges)).tolist() == [0, 0]


def test_a_wide_bin_is_one_that_edges_leave_room_in() -> None:
    edges = torch.tensor([[-TINY, 0.0, 0.99999994, 1.0, torch.inf, torch.inf]])
    assert is_wide(edges).tolist() == [[True, False, True, False, True, False, False]]


@pytest.mark.parametrize("bins", [64, 1024])
def test_wide_bins_are_nearly_equally_full(bins: int) -> None:
    x, sample = units(20_000), units(5000, seed=1)
    edges = unit_edges(sample, bins)
    counts = counted(x, edges)
    of_sample = widest(edges, counted(sample, edges))
    assert (of_sample <= 5000 * 2.1 / bins + 2).all()  # half as many quantiles where most values are shared
    assert (widest(edges, counts) <= 20_000 * (2.1 / bins + 5 / (bins * 5000) ** 0.5 + 1e-3)).all()
    assert counts.sum(1).tolist() == [20_000] * 8


def test_zeros_that_no_calibration_image_had_are_alone() -> None:
    edges = unit_edges(torch.arange(1.0, 3.0, 0.001)[:, None], 16)
    x = torch.tensor([[0.0], [-0.0], [1e-45], [-1e-39], [TINY], [2e-38], [-2e-38]])
    assert unit_bins(edges, x).tolist() == [[1, 1, 1, 1, 1, 2, 0]]
    assert not is_wide(edges)[0, 1]


def test_the_largest_numbers_have_bins() -> None:
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[-largest], [largest], [0.0], [largest]])
    edges = unit_edges(x, 16)
    assert widest(edges, counted(x, edges)).tolist() == [0]
    assert counted(x, edges)[counted(x, edges) > 0].tolist() == [1, 1, 2]


def test_edges_depend_neither_on_order_nor_on_the_other_units(monkeypatch: pytest.MonkeyPatch) -> None:
    x = units()
    edges = unit_edges(x, 64)
    assert unit_edges(x[torch.randperm(500)], 64).equal(edges)
    monkeypatch.setattr("impact_lightning.metrics.unit_bins.AT_ONCE", 1000)
    assert unit_edges(x, 64).equal(edges)
    assert unit_edges(8 * x, 64)[:, 1:].mul(1 / 8).isclose(edges[:, 1:], rtol=1e-6).float().mean() > 0.98


def test_twice_the_mean_rank() -> None:
    assert midranks(torch.tensor([[2, 0, 1], [0, 3, 0]])).tolist() == [[3, 5, 6], [1, 4, 7]]
    assert midranks(torch.tensor([[2**31, 2]])).tolist() == [[2**31 + 1, 2**32 + 3]]


def test_batches_in_any_order_equal_the_whole() -> None:
    x, edges = units().bfloat16(), unit_edges(units(), 64)
    metric = BinCounts(edges)
    for part in (slice(100, 500), slice(3, 3), slice(0, 100)):
        metric.update(x[part])
    assert metric.compute().equal(counted(x, edges))
    assert metric.compute().dtype == torch.int32


def of_rank(rank: int, cut: int) -> list[list[int]]:
    metric = BinCounts(unit_edges(units(), 64))
    metric.update(units()[:cut] if rank == 0 else units()[cut:])
    values: list[list[int]] = metric.compute().tolist()
    return values


@pytest.mark.parametrize("cut", [7, 500])  # with 500, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [counted(units(), unit_edges(units(), 64)).tolist()] * 2


def test_half_precision_leaves_edges_as_they_are() -> None:
    metric = BinCounts(unit_edges(units(), 64))
    torch.nn.ModuleList([metric]).bfloat16()
    assert metric.edges.equal(unit_edges(units(), 64))
    assert metric.state_dict() == {}
    merged = BinCounts(metric.edges)
    merged.update(units()[:9])
    metric.update(units()[9:])
    merged.merge_state(metric)
    assert merged.compute().equal(counted(units(), metric.edges))


def test_has_a_plot() -> None:
    figure, axes = plt.subplots()
    BinCounts(unit_edges(units(), 8)).plot(counted(units(), unit_edges(units(), 8)), ax=axes)
    assert axes.has_data()
    plt.close(figure)


def test_refuses_what_has_no_bin() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(UserError, match="not a number"):
            counted(torch.tensor([[bad]]), unit_edges(torch.zeros(1, 1)))
    with pytest.raises(UserError, match="2 units"):
        checked(torch.zeros(1, 3), 2)
    with pytest.raises(UserError, match="at least one"):
        unit_edges(torch.zeros(0, 3))
    with pytest.raises(UserError, match="too few"):
        unit_edges(torch.zeros(1, 3), 7)


def test_refuses_labels_that_are_no_class() -> None:
    for bad in (torch.tensor([0, 3]), torch.tensor([-1, 0])):
        with pytest.raises(UserError, match="classes are 0 to 2"):
            checked_labels(bad, 2, 3)
    with pytest.raises(UserError, match="there are 2 images"):
        checked_labels(torch.tensor([0]), 2, 3)
    assert len(checked_labels(torch.zeros(0, dtype=torch.int64), 0, 3)) == 0
