"""Top-k accuracy counts hits, and its null is the mean over all permutations of the labels."""

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from impact_lightning.metrics import TopKAccuracy
from tests.distributed import run_distributed


def scores(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


def measured(logits: Tensor, labels: Tensor, k: int) -> dict[str, float]:
    metric = TopKAccuracy(logits.shape[1], k)
    metric.update(logits, labels)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("k", [1, 2, 5])
def test_equals_torchmetrics(k: int) -> None:
    logits, labels = scores(97, 7)
    expected = multiclass_accuracy(logits, labels, num_classes=7, top_k=k, average="micro")
    assert measured(logits, labels, k)["value"] == pytest.approx(float(expected))


@pytest.mark.parametrize("k", [1, 2])
def test_null_is_the_mean_over_every_permutation_of_the_labels(k: int) -> None:
    logits, labels = scores(6, 3)
    values = [measured(logits, labels[list(order)], k)["value"] for order in permutations(range(6))]
    assert measured(logits, labels, k)["null"] == pytest.approx(sum(values) / len(values), abs=1e-12)


def test_batches_add_up_to_the_whole() -> None:
    logits, labels = scores(50, 4)
    metric = TopKAccuracy(4)
    for part in (slice(0, 7), slice(7, 7), slice(7, 50)):
        metric.update(logits[part], labels[part])
    assert {name: float(value) for name, value in metric.compute().items()} == measured(logits, labels, 1)


def of_rank(rank: int, logits: Tensor, labels: Tensor) -> dict[str, float]:
    part = slice(0, 13) if rank == 0 else slice(13, None)
    return measured(logits[part], labels[part], 1)


def test_two_uneven_ranks_equal_one() -> None:
    logits, labels = scores(50, 4)
    assert run_distributed(of_rank, logits, labels) == [measured(logits, labels, 1)] * 2


def test_more_guesses_than_classes_are_all_classes() -> None:
    assert measured(*scores(9, 3), k=5)["value"] == 1.0
