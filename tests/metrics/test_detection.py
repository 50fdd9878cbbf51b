"""Detection scores equal those of scikit-learn and scipy where bins are exact, and elsewhere keep to their errors."""

import math
from itertools import permutations, product

import matplotlib.pyplot as plt
import pytest
import torch
from scipy.stats import ks_2samp
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor

from impact_lightning.metrics.detection import Detection, Detections
from impact_lightning.metrics.unit_bins import BinCounts, unit_edges
from impact_lightning.types import UserError
from tests.distributed import run_distributed
from tests.metrics.test_unit_bins import counted, units

PREFERRED = torch.tensor([0, 1, 2, 3, 0, 1, 2, 1])
FIELDS = ("informedness", "average_precision", "recall")


def images(n: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (n,), generator=generator)
    is_own = labels[:, None] == PREFERRED  # (N, K)
    lift = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0, 2.0, 0.0, -1.0])
    return units(n, seed) + is_own * lift * torch.rand(n, 8, generator=generator).round(decimals=1), labels


def measured(
    x: Tensor,
    labels: Tensor,
    *parts: slice,
    preferred: Tensor = PREFERRED,
    sample: Tensor | None = None,
    bins: int = 1024,
) -> Detections:
    edges = unit_edges(x if sample is None else sample, bins)
    metric = Detection(edges, counted(x, edges), preferred)
    for part in parts or (slice(None),):
        metric.update(x[part], labels[part])
    result = metric.compute()
    assert isinstance(result, Detections)
    return result


def by_hand(x: Tensor, labels: Tensor) -> Detections:
    scores = []
    for unit, own in zip(x.T.numpy(), PREFERRED.tolist(), strict=True):
        is_own = (labels == own).numpy()
        informedness = ks_2samp(unit[is_own], unit[~is_own], alternative="less", method="asymp").statistic
        precision, recall, _ = precision_recall_curve(is_own, unit)
        scores.append((informedness, average_precision_score(is_own, unit), recall[precision >= 0.95].max()))
    informedness, precision, recall = torch.tensor(scores, dtype=torch.float64).T
    zeros = torch.zeros(8, dtype=torch.float64)
    return Detections(informedness, precision, recall, zeros, zeros, zeros)


def test_equals_scikit_learn_and_scipy() -> None:
    result, expected = measured(*images()), by_hand(*images())
    for name in FIELDS:
        assert torch.allclose(getattr(result, name), getattr(expected, name), rtol=0, atol=1e-9), name
    assert [error.tolist() for error in result[3:]] == [[0.0] * 8] * 3


def test_a_unit_below_chance_has_no_informedness() -> None:
    x, labels = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
    result = measured(x, labels, preferred=torch.tensor([0]))
    assert (result.informedness.item(), result.average_precision.item(), result.recall.item()) == (0.0, 0.5, 0.0)


def test_a_perfect_detector_scores_one() -> None:
    labels = torch.arange(40) % 4
    result = measured((labels == 1).float()[:, None], labels, preferred=torch.tensor([1]))
    assert [float(value) for value in result] == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("bins", [8, 16, 64, 256])
def test_exact_scores_are_within_their_errors(bins: int) -> None:
    for seed in range(3):
        x, labels = images(2000, seed)
        exact = by_hand(x, labels)
        for sample in (x[:300], units(300, seed=9)):  # of these images, and of others
            result = measured(x, labels, sample=sample, bins=bins)
            for name, error in (("informedness", result.informedness_error), ("recall", result.recall_error)):
                excess = getattr(exact, name) - getattr(result, name)
                assert (excess >= -1e-12).all()
                assert (excess <= error + 1e-12).all()
            off = (exact.average_precision - result.average_precision).abs()
            assert (off <= result.precision_error + 1e-12).all()


def orders(bins: list[str]) -> list[str]:
    """All images from the top, in any order within bins."""
    return ["".join(parts) for parts in product(*({"".join(p) for p in permutations(b)} for b in bins))]


@pytest.mark.parametrize("bins", [["pn", "ppn"], ["ppp", "n"], ["npp", "nn", "p"], ["n", "pppn"], ["ppnn", "pn"]])
def test_errors_hold_for_every_order_within_bins(bins: list[str]) -> None:
    flat = "".join(bins)
    label = torch.tensor([image == "p" for image in flat]).long()
    edges = torch.tensor([[float(-b) - 0.5 for b in range(len(bins) - 1)][::-1]])  # bin b is around -b
    x = torch.tensor([[-float(b)] for b, images in enumerate(bins) for _ in images])
    metric = Detection(edges, counted(x, edges), torch.tensor([1]))
    metric.update(x, label)
    result = metric.compute()
    values = []
    for order in orders(bins):
        is_own = torch.tensor([image == "p" for image in order]).numpy()
        scores = -torch.arange(len(order)).numpy()
        values.append(average_precision_score(is_own, scores))
        informedness = ks_2samp(scores[is_own], scores[~is_own], alternative="less").statistic
        excess = informedness - result.informedness.item()
        assert -1e-12 <= excess <= result.informedness_error.item() + 1e-12
        precision, recall, _ = precision_recall_curve(is_own, scores)
        excess = recall[precision >= 0.95].max() - result.recall.item()
        assert -1e-12 <= excess <= result.recall_error.item() + 1e-12
    off = max(abs(value - result.average_precision.item()) for value in values)
    assert off <= result.precision_error.item() + 1e-12


def test_more_bins_have_smaller_errors() -> None:
    x, labels = images(5000)
    coarse, fine = measured(x, labels, bins=32), measured(x, labels, bins=1024)
    assert (fine.informedness_error <= coarse.informedness_error).all()
    assert fine.informedness_error.max() < 0.01
    assert fine.precision_error.max() < 0.05


def test_a_unit_without_class_or_images_of_it_has_no_scores() -> None:
    preferred = torch.tensor([-1, 7, 0, 0, 0, 0, 0, 0])
    result = measured(*images(), preferred=preferred)
    for value in result:
        assert value.isnan().tolist() == [True] * 2 + [False] * 6
    only = measured(images()[0], torch.zeros(300, dtype=torch.int64), preferred=preferred)
    assert only.informedness.isnan().all()
    assert only.average_precision[2:].tolist() == [1.0] * 6  # there is nothing that it could take instead


def test_scale_changes_nothing() -> None:
    x, labels = images()
    for one, other in zip(measured(4 * x, labels), measured(x, labels), strict=True):
        assert one.equal(other)


def test_batches_in_any_order_equal_the_whole_bit_for_bit() -> None:
    x, labels = images()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    parts = (slice(200, 300), slice(7, 7), slice(0, 200))
    for result in (measured(x, labels, *parts, bins=32), measured(x[order], labels[order], *parts, bins=32)):
        for one, other in zip(result, measured(x, labels, bins=32), strict=True):
            assert one.equal(other)


def test_half_activations_are_those_numbers() -> None:
    x, labels = images()
    half = measured(x.bfloat16(), labels).average_precision
    assert half.equal(measured(x.bfloat16().float(), labels).average_precision)


def of_rank(rank: int, cut: int) -> list[list[float]]:
    x, labels = images()
    part = slice(0, cut) if rank == 0 else slice(cut, None)
    counts = BinCounts(unit_edges(x, 32))
    counts.update(x[part])
    metric = Detection(counts.edges, counts.compute(), PREFERRED)
    metric.update(x[part], labels[part])
    return [value.tolist() for value in metric.compute()]


@pytest.mark.parametrize("cut", [7, 300])  # with 300, the second rank sees nothing
def test_two_uneven_ranks_equal_one_bit_for_bit(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [[value.tolist() for value in measured(*images(), bins=32)]] * 2


def test_refuses_what_does_not_fit() -> None:
    x, labels = images()
    with pytest.raises(UserError, match="saw 200 images"):
        measured(x, labels, slice(0, 200))
    with pytest.raises(UserError, match="there are 8 units"):
        measured(x, labels, preferred=PREFERRED[:3])
    with pytest.raises(UserError, match="classes are 0"):
        measured(x, labels - 1)
    with pytest.raises(UserError, match="not a number"):
        Detection(unit_edges(x), counted(x, unit_edges(x)), PREFERRED).update(x * math.inf, labels)


def test_has_a_plot() -> None:
    x, labels = images()
    figure, axes = plt.subplots()
    edges = unit_edges(x)
    Detection(edges, counted(x, edges), PREFERRED).plot(measured(x, labels), ax=axes)
    assert axes.has_data()
    plt.close(figure)
