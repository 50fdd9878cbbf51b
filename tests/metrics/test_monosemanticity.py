"""The closed form of the MonoSemanticity score is the sum over pairs, and its null the mean over permutations."""

import math
from itertools import combinations, permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.metrics.monosemanticity import Monosemanticity, Scores
from impact_lightning.types import UserError
from tests.distributed import run_distributed


def images(n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=generator) + 5, torch.randn(n, 4, generator=generator)


def measured(*parts: tuple[Tensor, Tensor]) -> Scores:
    metric = Monosemanticity(3, 4)
    for part in parts:
        metric.update(*part)
    result = metric.compute()
    assert isinstance(result, Scores)
    return result


def by_hand(x: Tensor, embeddings: Tensor) -> list[float]:
    e = F.normalize(embeddings.double(), dim=1)
    scores = []
    for unit in x.double().T:
        a = ((unit - unit.min()) / (unit.max() - unit.min())).tolist()
        pairs = list(combinations(range(len(a)), 2))
        total = sum(a[i] * a[j] * float(e[i] @ e[j]) for i, j in pairs)
        scores.append(total / sum(a[i] * a[j] for i, j in pairs))
    return scores


def test_equals_the_sum_over_pairs() -> None:
    assert measured(images()).score.tolist() == pytest.approx(by_hand(*images()), abs=1e-12)


def test_null_is_the_mean_over_every_permutation_of_the_embeddings() -> None:
    x, e = images(5)
    scores = torch.tensor([by_hand(x, e[list(order)]) for order in permutations(range(5))])
    assert scores.mean(0).tolist() == pytest.approx([measured((x, e)).null.item()] * 3, abs=1e-6)


def test_one_hot_labels_give_the_share_of_pairs_with_the_same_label() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2])
    x = torch.tensor([[1.0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]])
    assert measured((x, F.one_hot(labels, 4))).score.tolist() == pytest.approx([1.0, 0.0, 1.0], abs=1e-12)


def test_batches_in_any_order_equal_the_whole() -> None:
    x, e = images()
    parts = [(x[part], e[part]) for part in (slice(13, 20), slice(2, 2), slice(0, 13))]
    assert measured(*parts).score.tolist() == pytest.approx(measured((x, e)).score.tolist(), abs=1e-12)


def of_rank(rank: int, cut: int) -> list[float]:
    x, e = images()
    part = slice(cut) if rank == 0 else slice(cut, None)
    result = measured((x[part], e[part])) if cut < 20 or rank == 0 else measured()
    return [*result.score.tolist(), float(result.null)]


@pytest.mark.parametrize("cut", [7, 20])  # with 20, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    whole = measured(images())
    expected = pytest.approx([*whole.score.tolist(), float(whole.null)], abs=1e-12)
    assert run_distributed(of_rank, cut) == [expected] * 2


def test_half_activations_are_summed_in_float64() -> None:
    x, e = images()
    assert measured((x.half(), e)).score.tolist() == pytest.approx(by_hand(x.half(), e), abs=1e-12)


def test_units_that_no_pair_drives_are_undefined_and_counted() -> None:
    x = torch.tensor([[0.0, 3.0, 0.0], [0.0, 3.0, 0.1], [1.0, 3.0, 0.3]])  # one image, constant, two images
    result = measured((x, torch.eye(4)[:3]))
    assert result.score.isnan().tolist() == [True, True, False]
    assert result.undefined == 2


def test_nothing_seen_is_nan() -> None:
    assert measured().score.isnan().all()
    assert math.isnan(measured().null)


def test_refuses_an_embedding_without_direction() -> None:
    with pytest.raises(UserError, match="one is zero"):
        measured((torch.ones(2, 3), torch.zeros(2, 4)))
