"""η² and F equal scikit-learn's analysis of variance, and the null is the mean over all permutations."""

import math
from itertools import permutations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.feature_selection import f_classif
from torch import Tensor

from impact_lightning.metrics.eta_squared import EtaSquared, Explained, expected_eta_squared
from tests.distributed import run_distributed
from tests.metrics.test_class_sums import CONSTANT, SILENT, C, K, N, activations, batches, close, labels
from tests.metrics.test_class_sums import of_rank as parts_of_rank

VARIED = [unit for unit in range(K) if unit not in (SILENT, CONSTANT)]


def measured(parts: list[tuple[Tensor, Tensor]], n_classes: int = C) -> Explained:
    metric = EtaSquared(parts[0][0].shape[1], n_classes)
    for part in parts:
        metric.update(*part)
    result = metric.compute()
    assert isinstance(result, Explained)
    return result


def by_hand() -> tuple[np.ndarray, np.ndarray]:
    """Return η² from sums of squares, and F of scikit-learn."""
    x, y = activations().double().numpy(), labels().numpy()
    eta, f = np.full(K, math.nan), np.full(K, math.nan)
    for unit in VARIED:
        mean = x[:, unit].mean()
        between = sum((y == c).sum() * (x[y == c, unit].mean() - mean) ** 2 for c in set(y.tolist()))
        eta[unit] = between / ((x[:, unit] - mean) ** 2).sum()
    f[VARIED] = f_classif(x[:, VARIED], y)[0]
    return eta, f


def test_equals_scikit_learn_in_any_order_and_batches() -> None:
    eta, f = by_hand()
    for parts in ([(activations(), labels())], batches()):
        result = measured(parts)
        assert result.eta_squared.numpy() == close(eta)
        assert result.f.numpy() == close(f)


def test_f_follows_from_eta_squared() -> None:
    eta, f = (part[VARIED] for part in measured(batches()))
    classes = len(labels().unique())
    assert f.numpy() == close(eta / (1 - eta) * (N - classes) / (classes - 1))


def test_scale_and_offset_do_not_matter() -> None:
    result = measured([(activations().double() * 3.7 + 0.25, labels())])
    assert result.eta_squared.numpy() == close(by_hand()[0])


def test_classes_of_equal_images_explain_everything() -> None:
    y = torch.arange(12) % C
    result = measured([(y[:, None] * 0.1, y)])
    assert result.eta_squared.item() == 1.0
    assert result.f.item() == math.inf


def test_with_one_image_of_each_class_there_is_no_f() -> None:
    result = measured([(torch.randn(C, K, generator=torch.Generator().manual_seed(0)), torch.arange(C))])
    assert (result.eta_squared == 1).all()
    assert result.f.isnan().all()


def test_before_any_image_and_with_one_class_nothing_is_defined() -> None:
    for parts in ([(activations()[:0], labels()[:0])], [(activations(), labels() * 0 + 3)]):
        result = measured(parts)
        assert result.eta_squared.isnan().all()
        assert result.f.isnan().all()


def test_the_null_is_the_mean_over_all_permutations() -> None:
    x = torch.tensor([[0.3, 0.0], [1.0, 0.0], [-2.0, 0.0], [0.7, 5.0], [4.0, 0.0], [0.0, 1.0]])
    orders = [list(order) for order in permutations([0, 0, 0, 2, 2, 3])]
    every = torch.stack([measured([(x, torch.tensor(order))], n_classes=4).eta_squared for order in orders])
    assert every.mean(0).numpy() == close([expected_eta_squared(6, 3)] * 2)


def test_one_image_has_no_null() -> None:
    assert math.isnan(expected_eta_squared(1, 1))
    assert expected_eta_squared(50_000, 1000) == pytest.approx(999 / 49_999)


def of_rank(rank: int) -> list[list[float]]:
    return [part.tolist() for part in measured(parts_of_rank(rank))]


def test_two_ranks_equal_one() -> None:
    for eta, f in run_distributed(of_rank):
        assert np.array(eta) == close(by_hand()[0])
        assert np.array(f) == close(by_hand()[1])


def test_plots() -> None:
    metric = EtaSquared(K, C)
    metric.update(activations(), labels())
    figure, axes = plt.subplots()
    metric.plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)


def test_f_is_exact_where_its_degrees_of_freedom_have_no_short_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3000, 1, generator=generator), torch.randint(7, (3000,), generator=generator)
    expected, _ = f_classif(x.double().numpy(), y.numpy())
    assert measured([(x, y)], n_classes=7).f.reshape(1).numpy() == pytest.approx(expected, rel=1e-12)
