"""Class variance equals numpy, and is left out where the mean is no scale."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.stats import variation
from torch import Tensor

from impact_lightning.metrics import class_sums
from impact_lightning.metrics.class_variance import ClassVariance
from tests.distributed import run_distributed
from tests.metrics.test_class_sums import CONSTANT, EMPTY, LONELY, SILENT, C, K, activations, batches, close, labels
from tests.metrics.test_class_sums import of_rank as parts_of_rank


def measured(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    metric = ClassVariance(parts[0][0].shape[1], C)
    for part in parts:
        metric.update(*part)
    result = metric.compute()
    assert isinstance(result, Tensor)
    return result


def by_hand() -> np.ndarray:
    x, y = activations().double().numpy(), labels().numpy()
    table = np.full((C, K), math.nan)
    for c in range(C):
        for unit in range(K):
            own = x[y == c, unit]
            if len(own) > 1 and np.ptp(x[:, unit]) > 0 and abs(own.mean()) >= 1e-3 * x[:, unit].std():
                table[c, unit] = variation(own)
    return table


def test_equals_scipy_in_any_order_and_batches() -> None:
    table = by_hand()
    assert np.isnan(table[[EMPTY, LONELY]]).all()
    assert np.isnan(table[:, [SILENT, CONSTANT]]).all()
    assert np.isfinite(table).sum() == (C - 2) * (K - 2)
    assert measured([(activations(), labels())]).numpy() == close(table)
    assert measured(batches()).numpy() == close(table)


def test_the_scale_does_not_matter() -> None:
    assert measured([(activations().double() * 3.7, labels())]).numpy() == close(by_hand())


def test_a_class_of_equal_images_does_not_vary() -> None:
    y = torch.arange(12) % C
    assert (measured([(0.1 + 0.2 * y[:, None], y)]) == 0).all()


@pytest.mark.parametrize(("shift", "is_defined"), [(0.9e-3, False), (1.1e-3, True), (-1.1e-3, True)])
def test_a_mean_near_zero_is_no_scale(shift: float, is_defined: bool) -> None:
    x = torch.tensor([[-1.0], [1.0]]).double().repeat(C, 1) + shift  # of standard deviation 1
    assert bool(measured([(x, torch.arange(C).repeat_interleave(2))]).isfinite().all()) == is_defined


def test_before_any_image_nothing_is_defined() -> None:
    assert measured([(activations()[:0], labels()[:0])]).isnan().all()


def test_tables_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_sums, "ENTRIES_AT_A_TIME", 4 * K)  # 6 classes in two parts
    assert measured(batches()).numpy() == close(by_hand())


def of_rank(rank: int) -> list[list[float]]:
    return measured(parts_of_rank(rank)).tolist()


def test_two_ranks_equal_one() -> None:
    for table in run_distributed(of_rank):
        assert np.array(table) == close(by_hand())


def test_plots() -> None:
    metric = ClassVariance(K, C)
    metric.update(activations(), labels())
    figure, axes = plt.subplots()
    metric.plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)
