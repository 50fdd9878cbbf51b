"""The class selectivity index equals numpy, and is undefined where nothing fires or there is no other class."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.class_selectivity import ClassSelectivity, Selectivity
from impact_lightning.metrics.class_sums import Rectify
from tests.distributed import run_distributed
from tests.metrics.test_class_sums import SILENT, C, K, activations, batches, close, labels, of_rank


def measured(parts: list[tuple[Tensor, Tensor]], rectify: Rectify = "relu") -> Selectivity:
    metric = ClassSelectivity(parts[0][0].shape[1], C, rectify=rectify)
    for part in parts:
        metric.update(*part)
    result = metric.compute()
    assert isinstance(result, Selectivity)
    return result


def by_hand(rectify: Rectify = "relu") -> tuple[np.ndarray, list[int]]:
    x, y = activations().double().numpy(), labels().numpy()
    x = {"relu": np.maximum(x, 0), "abs": np.abs(x), "none": x}[rectify]
    classes = sorted(set(y.tolist()))
    index, best = np.full(K, math.nan), [-1] * K
    for unit in range(K):
        means = [float(x[y == c, unit].mean()) for c in classes]
        if any(means):
            at = means.index(max(means))
            rest = np.mean(means[:at] + means[at + 1 :])
            index[unit], best[unit] = (means[at] - rest) / (means[at] + rest + 1e-7), classes[at]
    return index, best


@pytest.mark.parametrize("rectify", ["relu", "abs", "none"])
def test_equals_numpy_in_any_order_and_batches(rectify: Rectify) -> None:
    index, best = by_hand(rectify)
    units = [unit for unit in range(K) if unit != 5]  # all classes of a constant unit tie, up to rounding of means
    for parts in ([(activations(), labels())], batches()):
        result = measured(parts, rectify)
        assert result.index.numpy() == close(index)
        assert result.best[units].tolist() == [best[unit] for unit in units]
    assert math.isnan(index[SILENT])


def test_a_detector_has_the_index_1_and_its_class() -> None:
    y = torch.arange(12) % C
    result = measured([((y == 3)[:, None] * 2.5, y)])
    assert result.index.item() == pytest.approx(1.0, abs=1e-7)
    assert result.best.item() == 3


def test_of_equal_classes_the_lower_is_best() -> None:
    y = torch.arange(C)
    assert measured([(torch.tensor([[0.0], [2.0], [1.0], [2.0], [2.0], [0.0]]), y)]).best.item() == 1


def test_classes_without_images_are_left_out() -> None:
    result = measured([(torch.tensor([[3.0], [1.0]]), torch.tensor([0, 4]))])
    assert result.index.item() == pytest.approx(0.5)  # with four zeros among the others: 0.88
    below = measured([(torch.tensor([[-3.0], [-1.0]]), torch.tensor([0, 4]))], "none")
    assert below.best.item() == 4  # not one that has no images


def test_one_class_has_nothing_to_compare_with() -> None:
    for parts in ([(torch.ones(3, K), torch.ones(3, dtype=torch.int64))], [(torch.ones(0, K), labels()[:0])]):
        result = measured(parts)
        assert result.index.isnan().all()
        assert (result.best == -1).all()


def test_the_scale_does_not_matter() -> None:
    big = measured([(activations() * 1024, labels())])
    assert big.index.numpy() == pytest.approx(by_hand()[0], rel=1e-5, nan_ok=True)  # 1e-7 in the definition does


def of_two(rank: int) -> list[list[float]]:
    return [part.tolist() for part in measured(of_rank(rank))]


def test_two_ranks_equal_one() -> None:
    for index, best in run_distributed(of_two):
        assert np.array(index) == close(by_hand()[0])
        assert best[:5] == by_hand()[1][:5]


def test_plots() -> None:
    metric = ClassSelectivity(K, C)
    metric.update(activations(), labels())
    figure, axes = plt.subplots()
    metric.plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)
