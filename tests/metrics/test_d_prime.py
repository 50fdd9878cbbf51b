"""d′ equals numpy for every class against all other images."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.metrics import class_sums
from impact_lightning.metrics.d_prime import DPrime
from tests.distributed import run_distributed
from tests.metrics.test_class_sums import CONSTANT, EMPTY, LONELY, SILENT, C, K, activations, batches, close, labels
from tests.metrics.test_class_sums import of_rank as parts_of_rank


def measured(parts: list[tuple[Tensor, Tensor]], n_units: int = K, n_classes: int = C) -> Tensor:
    metric = DPrime(n_units, n_classes)
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
            own, rest = x[y == c, unit], x[y != c, unit]
            if len(own) > 1 and len(rest) > 1 and np.ptp(own) + np.ptp(rest) > 0:
                table[c, unit] = (own.mean() - rest.mean()) / math.sqrt((own.var() + rest.var()) / 2)
    return table


def test_equals_numpy_in_any_order_and_batches() -> None:
    table = by_hand()
    assert np.isnan(table[[EMPTY, LONELY]]).all()
    assert np.isnan(table[:, [SILENT, CONSTANT]]).all()
    assert measured([(activations(), labels())]).numpy() == close(table)
    assert measured(batches()).numpy() == close(table)


def test_scale_and_offset_do_not_matter() -> None:
    result = measured([(activations().double() * 3.7 + 0.25, labels())])
    assert result.numpy() == close(by_hand())


def test_of_two_classes_each_is_the_rest_of_the_other() -> None:
    y = labels() % 2
    result = measured([(activations(), y)], n_classes=2)
    assert result[0].numpy() == close(-result[1])


def test_one_constant_side_is_enough() -> None:
    x, y = torch.tensor([[1.0], [1.0], [0.0], [2e-3]]), torch.tensor([0, 0, 1, 1])
    assert measured([(x, y)], 1, 2)[0].item() == pytest.approx(0.999 / math.sqrt(1e-6 / 2), rel=1e-6)


def test_two_constants_have_no_scale() -> None:
    y = torch.arange(60) % 3
    x = torch.where(y == 0, 0.1, 0.3)[:, None]
    result = measured([(x, y)], 1, 3).squeeze(1)
    assert math.isnan(result[0])
    assert result[1:].isfinite().all()


def test_before_any_image_and_with_one_class_nothing_is_defined() -> None:
    assert measured([(activations()[:0], labels()[:0])]).isnan().all()
    assert measured([(activations(), labels() * 0)]).isnan().all()


def test_tables_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_sums, "ENTRIES_AT_A_TIME", 4 * K)  # 6 classes in two parts
    assert measured(batches()).numpy() == close(by_hand())


def of_rank(rank: int) -> list[list[float]]:
    return measured(parts_of_rank(rank)).tolist()


def test_two_ranks_equal_one() -> None:
    for table in run_distributed(of_rank):
        assert np.array(table) == close(by_hand())


def test_plots() -> None:
    metric = DPrime(K, C)
    metric.update(activations(), labels())
    figure, axes = plt.subplots()
    metric.plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)
