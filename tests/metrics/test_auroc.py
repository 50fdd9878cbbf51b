"""AUROC equals scikit-learn's where bins are exact, and is nowhere further away than its certificate."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from impact_lightning.metrics.auroc import AUROCs, UnitAUROC, auroc_error, expected_null_std, unit_auroc
from impact_lightning.metrics.unit_bins import BinCounts, unit_edges
from impact_lightning.types import UserError
from tests.distributed import run_distributed
from tests.metrics.test_unit_bins import counted, units

C = 6
Pair = tuple[Tensor, Tensor]


def images(n: int = 300) -> Pair:
    labels = torch.randint(C - 2, (n,), generator=torch.Generator().manual_seed(1))  # the last class has no images
    labels[5] = C - 2  # and the one before has one
    return units(n), labels


def measured(x: Tensor, labels: Tensor, *parts: slice, sample: Tensor | None = None, bins: int = 1024) -> AUROCs:
    edges = unit_edges(x if sample is None else sample, bins)
    metric = UnitAUROC(edges, counted(x, edges), max(C, int(labels.max()) + 1))
    for part in parts or (slice(None),):
        metric.update(x[part], labels[part])
    result = metric.compute()
    assert isinstance(result, AUROCs)
    return result


def by_hand(x: Tensor, labels: Tensor) -> Tensor:
    rows = []
    for c in range(max(C, int(labels.max()) + 1)):
        is_class = (labels == c).numpy()
        defined = 0 < is_class.sum() < len(x)
        rows.append([roc_auc_score(is_class, unit) if defined else math.nan for unit in x.float().T.numpy()])
    return torch.tensor(rows, dtype=torch.float64)


def test_equals_scikit_learn() -> None:
    result, expected = measured(*images()), by_hand(*images())
    assert torch.allclose(result.auroc, expected, rtol=0, atol=1e-9, equal_nan=True)
    assert result.certificate.tolist() == [0.0] * 8
    assert result.images.tolist() == torch.bincount(images()[1], minlength=C).tolist()


def test_pairs_count_one_half_where_they_tie() -> None:
    x, labels = torch.tensor([[1.0], [2.0], [2.0], [0.0]]), torch.tensor([1, 1, 0, 0])
    assert measured(x, labels).auroc[1].item() == (0 + 1 + 0.5 + 1) / 4


def test_a_constant_unit_is_at_chance_exactly() -> None:
    result = measured(*images())
    assert result.auroc[: C - 1, 6].tolist() == [0.5] * (C - 1)
    assert result.certificate[6] == 0
    coarse = measured(*images(), sample=units(20, seed=2), bins=8)
    assert coarse.auroc[: C - 1, 6].tolist() == [0.5] * (C - 1)
    assert coarse.certificate[6] == 0


def test_without_rest_or_class_there_is_no_auroc() -> None:
    x, _ = images()
    result = measured(x, torch.full((300,), 2))
    assert result.auroc.isnan().all()
    assert result.certificate.isnan().all()
    assert measured(*images()).auroc.isnan().all(1).tolist() == [False] * (C - 1) + [True]


@pytest.mark.parametrize("bins", [8, 32, 256])
def test_the_certificate_bounds_the_error_for_any_edges(bins: int) -> None:
    generator = torch.Generator().manual_seed(3)
    x, labels = units(3000, seed=4), torch.randint(5, (3000,), generator=generator) ** 2  # uneven classes
    labels[:2000] = 0  # one of them above one half
    x += 0.5 * labels[:, None] * (x != 0) * torch.rand(3000, 8, generator=generator)
    exact = by_hand(x, labels)
    for sample in (x[:200], units(200, seed=9)):  # of these images, and of others
        result = measured(x, labels, sample=sample, bins=bins)
        error = (result.auroc - exact).abs()
        assert (error.nan_to_num() <= result.certificate + 1e-12).all()
        sharp = auroc_error(result.widest, result.images.sum(), result.images[:, None])  # (C, K)
        assert (error.nan_to_num() <= sharp + 1e-12).all()
        assert (sharp[~exact.isnan().all(1)].amax(0) == result.certificate).all()


def test_a_thousand_bins_are_good_for_three_digits() -> None:
    x, labels = units(20_000), torch.randint(400, (20_000,), generator=torch.Generator().manual_seed(0))
    result = measured(x, labels, sample=x)
    assert (result.certificate < 1.1e-3).all()  # units of bfloat16 numbers have half as many quantiles
    assert (result.certificate[[0, 1, 2, 3, 7]] < 5.5e-4).all()
    exact = by_hand(x[:, :5], labels)[:20]
    assert ((result.auroc[:20, :5] - exact).abs() < 2e-4).all()


def test_scale_changes_nothing_and_a_sign_turns_around() -> None:
    x, labels = images()
    for same in (4 * x, x / 2):
        assert measured(same, labels).auroc[:5].equal(measured(x, labels).auroc[:5])
    fallen = measured(-x, labels).auroc[:5]
    assert torch.allclose(fallen, 1 - measured(x, labels).auroc[:5], rtol=0, atol=1e-12)


def test_batches_in_any_order_equal_the_whole_bit_for_bit() -> None:
    x, labels = images()
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    parts = (slice(200, 300), slice(7, 7), slice(0, 200))
    for result in (measured(x, labels, *parts, bins=32), measured(x[order], labels[order], *parts, bins=32)):
        assert result.auroc[:5].equal(measured(x, labels, bins=32).auroc[:5])


def test_half_activations_are_those_numbers() -> None:
    x, labels = images()
    half = measured(x.bfloat16(), labels).auroc[:5]
    assert half.equal(measured(x.bfloat16().float(), labels).auroc[:5])


def of_rank(rank: int, cut: int) -> list[list[float]]:
    x, labels = images()
    part = slice(0, cut) if rank == 0 else slice(cut, None)
    counts = BinCounts(unit_edges(x, 32))
    counts.update(x[part])
    metric = UnitAUROC(counts.edges, counts.compute(), C)
    metric.update(x[part], labels[part])
    values: list[list[float]] = metric.compute().auroc[: C - 1].tolist()
    return values


@pytest.mark.parametrize("cut", [7, 300])  # with 300, the second rank sees nothing
def test_two_uneven_ranks_equal_one_bit_for_bit(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [measured(*images(), bins=32).auroc[: C - 1].tolist()] * 2


def test_stored_activations_go_through_both_passes() -> None:
    x, labels = images()
    for one, other in zip(unit_auroc(x, labels, C), measured(x, labels), strict=True):
        assert torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


def test_labels_that_do_not_matter_vary_as_expected() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 2000, generator=generator)
    spread = unit_auroc(x, (torch.arange(400) < 50).long(), 2).auroc[1].std()
    assert spread.item() == pytest.approx(expected_null_std(torch.tensor(400), torch.tensor(50)).item(), rel=0.06)


def test_refuses_another_number_of_images_than_were_counted() -> None:
    x, labels = images()
    with pytest.raises(UserError, match="saw 200 images, but bins were counted on 300"):
        measured(x, labels, slice(0, 200))
    counts = torch.tensor([[1, 1], [2, 1]])
    with pytest.raises(UserError, match="different numbers"):
        UnitAUROC(torch.zeros(2, 1), counts, C)
    with pytest.raises(UserError, match="does not fit"):
        UnitAUROC(torch.zeros(2, 2), counts, C)


def test_refuses_labels_and_activations_that_are_none() -> None:
    x, labels = images()
    metric = UnitAUROC(unit_edges(x), counted(x, unit_edges(x)), C)
    with pytest.raises(UserError, match="classes are 0 to 5"):
        metric.update(x, labels + 3)
    with pytest.raises(UserError, match="not a number"):
        metric.update(x / 0, labels)


def test_has_a_plot() -> None:
    x, labels = images()
    figure, axes = plt.subplots()
    edges = unit_edges(x)
    UnitAUROC(edges, counted(x, edges), C).plot(measured(x, labels), ax=axes)
    assert axes.has_data()
    plt.close(figure)
