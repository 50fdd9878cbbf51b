"""Class entropy equals scipy, for rectified means and for means of what is rectified."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from impact_lightning.metrics.class_entropy import ClassEntropy
from impact_lightning.metrics.class_sums import Rectify
from tests.distributed import run_distributed
from tests.metrics.test_class_sums import CONSTANT, SILENT, C, K, activations, batches, close, labels
from tests.metrics.test_class_sums import of_rank as parts_of_rank


def measured(parts: list[tuple[Tensor, Tensor]], rectify: Rectify = "none") -> Tensor:
    metric = ClassEntropy(parts[0][0].shape[1], C, rectify=rectify)
    for part in parts:
        metric.update(*part)
    result = metric.compute()
    assert isinstance(result, Tensor)
    return result


def by_hand(rectify: Rectify = "none") -> np.ndarray:
    x, y = activations().double().numpy(), labels().numpy()
    x = {"relu": np.maximum(x, 0), "abs": np.abs(x), "none": x}[rectify]
    means = np.stack([x[y == c].mean(0) for c in sorted(set(y.tolist()))])
    result = np.full(K, math.nan)
    for unit in range(K):
        if unit != SILENT:
            result[unit] = entropy(np.maximum(means[:, unit], 0))
    return result


@pytest.mark.parametrize("rectify", ["relu", "abs", "none"])
def test_equals_scipy_in_any_order_and_batches(rectify: Rectify) -> None:
    for parts in ([(activations(), labels())], batches()):
        assert measured(parts, rectify).numpy() == close(by_hand(rectify))


def test_rectifying_images_or_means_are_two_numbers() -> None:
    assert not np.allclose(by_hand("relu")[0], by_hand("none")[0])


def test_a_constant_unit_is_spread_over_all_classes_with_images() -> None:
    assert measured(batches())[CONSTANT].item() == pytest.approx(math.log(len(labels().unique())))


def test_one_positive_class_has_no_entropy() -> None:
    y = torch.arange(12) % C
    assert measured([((y == 3)[:, None] * 2.0 - 1, y)]).item() == 0.0


def test_without_a_positive_mean_there_is_none() -> None:
    assert math.isnan(measured([(-torch.ones(C, 1), torch.arange(C))]))
    assert measured([(activations()[:0], labels()[:0])]).isnan().all()


def test_one_class_has_nothing_to_compare_with() -> None:
    assert measured([(activations().abs(), labels() * 0)]).isnan().all()


def test_the_scale_does_not_matter() -> None:
    assert measured([(activations().double() * 3.7, labels())]).numpy() == close(by_hand())


def of_rank(rank: int) -> list[float]:
    return measured(parts_of_rank(rank)).tolist()


def test_two_ranks_equal_one() -> None:
    for values in run_distributed(of_rank):
        assert np.array(values) == close(by_hand())


def test_plots() -> None:
    metric = ClassEntropy(K, C)
    metric.update(activations(), labels())
    figure, axes = plt.subplots()
    metric.plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)
