"""Class sums equal numpy on any number of ranks, and metrics made from them share their states."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from impact_lightning.metrics.class_entropy import ClassEntropy
from impact_lightning.metrics.class_selectivity import ClassSelectivity
from impact_lightning.metrics.class_sums import ClassSums, Rectify
from impact_lightning.metrics.class_variance import ClassVariance
from impact_lightning.metrics.d_prime import DPrime
from impact_lightning.metrics.eta_squared import EtaSquared
from impact_lightning.types import UserError
from tests.distributed import run_distributed

N, K, C = 61, 7, 6
EMPTY, LONELY = 2, 5  # a class without images, and one with one
SILENT, CONSTANT, TIED = 4, 5, 6  # units


def activations() -> Tensor:
    """Return float32 with exact zeros, a silent unit, a constant one and one of few values, `(N, K)`."""
    x = torch.randn(N, K, generator=torch.Generator().manual_seed(0)) + 0.3
    x[:, 1] = x[:, 1].relu()
    x[:, 2] *= 1e4
    x[:, SILENT] = 0.0
    x[:, CONSTANT] = 0.1
    x[:, TIED] = (x[:, TIED] * 2).round() / 2
    return x


def labels() -> Tensor:
    y = torch.randint(LONELY - 1, (N,), generator=torch.Generator().manual_seed(1))
    y[y >= EMPTY] += 1
    y[17] = LONELY
    return y


def batches(*, seed: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Return the images in another order and in uneven batches, one of them empty."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    return [(activations()[part], labels()[part]) for part in order.split([1, 0, 30, 30])]


def of_rank(rank: int) -> list[tuple[Tensor, Tensor]]:
    """Return the batches of one of two ranks; the second has fewer."""
    return batches()[:3] if rank == 0 else batches()[3:]


def close(values: Tensor | np.ndarray | list[float] | list[list[float]], *, scale: float = 1.0) -> object:
    expected = values.numpy() if isinstance(values, Tensor) else np.array(values)
    return pytest.approx(expected, rel=1e-9, abs=1e-9 * scale, nan_ok=True)


def measured(parts: list[tuple[Tensor, Tensor]], rectify: Rectify = "none") -> ClassSums:
    metric = ClassSums(K, C, rectify=rectify)
    for part in parts:
        metric.update(*part)
    return metric


def by_hand(rectify: Rectify) -> tuple[np.ndarray, np.ndarray]:
    x, y = activations().double().numpy(), labels().numpy()
    x = {"relu": np.maximum(x, 0), "abs": np.abs(x), "none": x}[rectify]
    means, variances = np.full((C, K), math.nan), np.full((C, K), math.nan)
    for c in set(y.tolist()):
        means[c], variances[c] = x[y == c].mean(0), x[y == c].var(0)
    return means, variances


@pytest.mark.parametrize("rectify", ["relu", "abs", "none"])
def test_equals_numpy_in_any_order_and_batches(rectify: Rectify) -> None:
    means, variances = by_hand(rectify)
    for parts in ([(activations(), labels())], batches()):
        metric = measured(parts, rectify)
        assert metric.means().numpy() == close(means)
        assert metric.variances().numpy() == close(variances)


def test_what_is_constant_has_no_variance_at_all() -> None:
    variances = measured(batches()).variances()
    has_images = torch.arange(C) != EMPTY
    assert (variances[has_images][:, [SILENT, CONSTANT]] == 0).all()
    assert (variances[LONELY] == 0).all()
    assert variances[EMPTY].isnan().all()


def test_a_small_variance_far_from_zero_is_one() -> None:
    metric = ClassSums(1, 1)
    metric.update(1e3 + torch.tensor([[0.0], [0.25]]), torch.tensor([0, 0]))
    assert metric.variances().item() == pytest.approx(0.125**2)


def test_half_activations_are_summed_in_double() -> None:
    metric = ClassSums(K, C)
    metric.update(activations().bfloat16(), labels())
    assert metric.sums.dtype == metric.squares.dtype == torch.float64
    expected = ClassSums(K, C)
    expected.update(activations().bfloat16().double(), labels())
    assert metric.squares.equal(expected.squares)


def state_of_rank(rank: int) -> list[list[list[float]]]:
    metric = measured(of_rank(rank))
    metric.sync()
    return [metric.means().tolist(), metric.variances().tolist()]


def test_two_ranks_equal_one() -> None:
    for means, variances in run_distributed(state_of_rank):
        assert np.array(means) == close(by_hand("none")[0])
        assert np.array(variances) == close(by_hand("none")[1])


def test_merged_metrics_equal_the_whole() -> None:
    metric = measured(of_rank(0), "relu")
    metric.merge_state(measured(of_rank(1), "relu"))
    assert metric.means().numpy() == close(by_hand("relu")[0])
    assert metric.variances().numpy() == close(by_hand("relu")[1])


def test_a_reset_forgets_and_the_default_takes_no_memory() -> None:
    metric = measured(batches())
    metric.reset()
    assert metric.sums.count_nonzero() + metric.counts.sum() == 0
    default = metric._defaults["sums"]
    assert isinstance(default, Tensor)
    assert default.untyped_storage().nbytes() == 8
    metric.update(activations(), labels())
    assert metric.means().numpy() == close(by_hand("none")[0])


def test_without_squares_there_is_no_state_of_them() -> None:
    metric = ClassSums(K, C, squares=False)
    metric.update(activations(), labels())
    assert set(metric._defaults) == {"sums", "counts", "rectification"}
    assert metric.compute().numpy() == close(by_hand("none")[0])


def test_metrics_of_one_rectification_share_their_states() -> None:
    collection = MetricCollection(
        {
            "d": DPrime(K, C, rectify="relu"),
            "eta": EtaSquared(K, C, rectify="relu"),
            "cv": ClassVariance(K, C, rectify="relu"),
            "csi": ClassSelectivity(K, C, rectify="relu", squares=True),
            "alone": ClassSelectivity(K, C, rectify="relu"),
            "entropy": ClassEntropy(K, C, rectify="relu"),
        }
    )
    for part in batches():
        collection.update(*part)
    groups = {frozenset(group) for group in collection.compute_groups.values()}
    assert groups == {frozenset({"d", "eta", "cv", "csi"}), frozenset({"alone", "entropy"})}
    alone = DPrime(K, C, rectify="relu")
    alone.update(activations(), labels())
    assert collection.compute()["d"].numpy() == close(alone.compute())
    shared, own = (collection[name].compute().index for name in ("csi", "alone"))
    assert shared.numpy() == close(own)


def test_metrics_that_begin_alike_do_not_share_unlike_rectifications() -> None:
    kinds: list[Rectify] = ["relu", "abs", "none"]
    collection = MetricCollection({kind: ClassSums(K, C, rectify=kind) for kind in kinds})
    collection.update(activations().abs(), labels())  # the same for all three
    collection.update(activations(), labels())
    assert len(collection.compute_groups) == 3
    result = collection.compute()
    assert not result["relu"].equal(result["none"])


def test_refuses_what_it_cannot_count() -> None:
    metric = ClassSums(K, C)
    for label in (-1, C):
        with pytest.raises(UserError, match=f"labels: {label} is none of {C} classes"):
            metric.update(activations()[:1], torch.tensor([label]))
    for value in (math.nan, math.inf, -math.inf):
        bad = activations()
        bad[3, 2] = value
        with pytest.raises(UserError, match=f"activations: {value} in row 3, unit 2"):
            metric.update(bad, labels())
    with pytest.raises(UserError, match="rectify: 'gelu'"):
        ClassSums(K, C, rectify="gelu")  # type: ignore[arg-type]
    assert metric.counts.sum() == 0


def test_finite_activations_with_an_infinite_sum_are_welcome() -> None:
    metric = ClassSums(1, 1)
    metric.update(torch.full((2, 1), 3e38), torch.zeros(2, dtype=torch.int64))
    assert metric.means().item() == pytest.approx(3e38)


def test_plots() -> None:
    figure, axes = plt.subplots()
    measured(batches()).plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)
