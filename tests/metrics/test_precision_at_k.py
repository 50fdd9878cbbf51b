"""Precision at k keeps the strongest images exactly, and counts their classes as a loop does."""

import math
from collections import Counter

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor

from impact_lightning.metrics import precision_at_k
from impact_lightning.metrics.precision_at_k import Precision, PrecisionAtK, _entries, _keys
from impact_lightning.types import UserError
from tests.distributed import run_distributed

N, K, C, AT = 57, 6, 4, 7
Numbers = list[list[float] | list[list[float]]]


def activations() -> Tensor:
    """Return few distinct values, so that ties are everywhere; one unit is zero, one constant, one without ties."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-6, 7, (N, K), generator=generator) / 4
    x[:, 3], x[:, 4] = 0.0, -1.5
    x[:, 5] = torch.randn(N, generator=generator) * 1e-30
    return x


def labels() -> Tensor:
    return torch.randint(C, (N,), generator=torch.Generator().manual_seed(1))


def permuted() -> Tensor:
    return labels()[torch.randperm(N, generator=torch.Generator().manual_seed(2))]


def metric(at: int = AT) -> PrecisionAtK:
    return PrecisionAtK(K, labels(), at, permuted=permuted())


def measured(images: list[Tensor], at: int = AT) -> Numbers:
    result = metric(at)
    for part in images:
        result.update(activations()[part], part)
    return numbers(result.compute())


def numbers(result: Precision) -> Numbers:
    return [part.double().nan_to_num(-99).tolist() for part in result]


def by_hand(seen: int = N, at: int = AT) -> Numbers:
    precision, best, null, images, values = [], [], [], [], []
    for unit in range(K):
        x = activations()[:seen, unit].tolist()
        order = sorted(range(seen), key=lambda image: (-x[image], image))[:at]
        free = at - len(order)
        counts = Counter(labels()[order].tolist())
        best.append(min((c for c in counts if counts[c] == max(counts.values())), default=-1))
        precision.append(counts[best[-1]] / len(order) if order else -99)
        null.append(max(Counter(permuted()[order].tolist()).values()) / len(order) if order else -99)
        images.append(order + [-1] * free)
        values.append([x[image] for image in order] + [-99] * free)
    return [precision, best, null, images, values]  # type: ignore[list-item]


@pytest.mark.parametrize("at", [1, AT, N, N + 3])
def test_equals_a_sorted_list(at: int) -> None:
    assert measured([torch.arange(N)], at) == by_hand(at=at)


@pytest.mark.parametrize("seed", range(5))
def test_images_in_any_order_and_batch_give_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_at_k, "ENTRIES_AT_A_TIME", 10 * K)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    assert measured(list(order.split([2, 0, 25, 30]))) == by_hand()
    assert measured(list(order.split(1))) == by_hand()


@pytest.mark.parametrize("seen", [0, 1, 3])
def test_of_fewer_than_k_images_the_share_is_of_those(seen: int) -> None:
    assert measured([torch.arange(seen)]) == by_hand(seen)


def test_keys_are_in_the_order_of_activations_then_of_lower_images() -> None:
    tiny, largest = torch.finfo(torch.float32).smallest_normal, torch.finfo(torch.float32).max
    x = torch.tensor([-largest, -1.5, -1.0, -tiny, -tiny / 8, 0.0, tiny / 8, tiny, 1.0, 1.5, largest])
    keys = _keys(x[:, None], torch.zeros(len(x), dtype=torch.int64)).flatten()
    assert (keys.diff() > 0).all()
    images = torch.tensor([0, 1, 2**31, 2**32 - 1])
    for value in (-1.5, 0.0, 1.5):
        keys = _keys(torch.full((4, 1), value), images).flatten()
        assert (keys.diff() < 0).all()
        assert keys.min() > precision_at_k.FREE
        assert _entries(keys)[0].equal(images)
        assert (_entries(keys)[1] == value).all()


def test_negative_zero_is_zero() -> None:
    result = PrecisionAtK(1, torch.arange(3), k=2)
    result.update(torch.tensor([[0.0], [-0.0], [0.0]]), torch.tensor([2, 0, 1]))
    assert result.compute().images.tolist() == [[0, 1]]


def test_a_positive_scale_keeps_the_images() -> None:
    result = metric()
    result.update(activations() * 4, torch.arange(N))
    assert numbers(result.compute())[:4] == by_hand()[:4]


def test_half_and_double_activations_keep_their_values() -> None:
    coarse = activations()
    coarse[:, 5] = 0.5
    results = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        result = metric()
        result.update(coarse.to(dtype), torch.arange(N))
        results.append(numbers(result.compute()))
    assert results[0] == results[1] == results[2]


def test_a_detector_has_precision_1_and_permuted_labels_do_not() -> None:
    own = torch.arange(4000) % C
    other = own[torch.randperm(4000, generator=torch.Generator().manual_seed(0))]
    result = PrecisionAtK(1, own, k=500, permuted=other)
    result.update((own == 2).float()[:, None], torch.arange(4000))
    assert result.compute().precision.item() == 1.0
    assert result.compute().best.item() == 2
    assert result.compute().null.item() < 0.35


def test_without_permuted_labels_there_is_no_null() -> None:
    result = PrecisionAtK(K, labels(), AT)
    result.update(activations(), torch.arange(N))
    assert result.compute().null.isnan().all()


def of_rank(rank: int, cut: int) -> Numbers:
    return measured([torch.arange(cut) if rank == 0 else torch.arange(cut, N)])


@pytest.mark.parametrize("cut", [20, N])  # with all on the first, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [by_hand()] * 2


def test_merged_metrics_equal_the_whole() -> None:
    first, second = metric(), metric()
    first.update(activations()[5:], torch.arange(5, N))
    second.update(activations()[:5], torch.arange(5))
    first.merge_state(second)
    assert numbers(first.compute()) == by_hand()
    first.update(activations()[:0], torch.arange(0))
    assert numbers(first.compute()) == by_hand()


def test_it_continues_after_a_merge() -> None:
    first, second = metric(), metric()
    first.update(activations()[:20], torch.arange(20))
    second.update(activations()[20:40], torch.arange(20, 40))
    first.merge_state(second)
    first.update(activations()[40:], torch.arange(40, N))
    assert numbers(first.compute()) == by_hand()


def test_refuses_what_has_no_order_or_no_label() -> None:
    for value in (math.nan, math.inf, 1e300):  # the last is infinite in float32
        with pytest.raises(UserError, match="row 0, unit 0 is not finite"):
            metric().update(torch.full((1, K), value, dtype=torch.float64), torch.tensor([0]))
    for image in (-1, N):
        with pytest.raises(UserError, match=f"images: {image} is none of the {N}"):
            metric().update(activations()[:1], torch.tensor([image]))
    with pytest.raises(UserError, match="permuted: 3 labels"):
        PrecisionAtK(K, labels(), permuted=labels()[:3])
    with pytest.raises(UserError, match="labels: -1"):
        PrecisionAtK(K, labels() - 1)


@pytest.mark.gpu
def test_an_accelerator_gives_the_same() -> None:
    result = metric().to("cuda")
    for part in torch.arange(N).split(9):
        result.update(activations()[part].cuda(), part.cuda())
    assert numbers(result.compute()) == by_hand()


def test_plots() -> None:
    result = metric()
    result.update(activations(), torch.arange(N))
    figure, axes = plt.subplots()
    result.plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)
