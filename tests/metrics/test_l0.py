"""L0 counts the active latents of each token."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.l0 import L0
from tests.distributed import run_distributed


def some_codes(n: int = 30) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0)).relu()


def measured(*parts: Tensor) -> tuple[float, int, list[int]]:
    metric = L0(6)
    for part in parts:
        metric.update(part)
    result = metric.compute()
    return float(result["l0"]), int(result["n"]), result["histogram"].tolist()


def by_hand(codes: Tensor) -> tuple[float, int, list[int]]:
    active = [sum(value != 0 for value in token) for token in codes.flatten(0, -2).tolist()]
    return sum(active) / len(active), len(active), [Counter(active)[i] for i in range(7)]


@pytest.mark.parametrize("shape", [(30, 6), (5, 6, 6)])
def test_equals_a_count_by_hand(shape: tuple[int, ...]) -> None:
    assert measured(some_codes().reshape(shape)) == by_hand(some_codes())


def test_negative_codes_are_active() -> None:
    assert measured(torch.tensor([[-1.0, 0, 0, 0, 0, 0]]))[0] == 1.0


def test_batches_in_any_order_equal_the_whole() -> None:
    codes = some_codes()
    assert measured(codes[20:], codes[:0], codes[:20]) == measured(codes)


def test_half_codes_count_the_same() -> None:
    assert measured(some_codes().bfloat16()) == measured(some_codes())


def of_rank(rank: int, cut: int) -> tuple[float, int, list[int]]:
    part = some_codes()[:cut] if rank == 0 else some_codes()[cut:]
    return measured(part) if len(part) else measured()


@pytest.mark.parametrize("cut", [7, 30])  # with 30, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [measured(some_codes())] * 2


def test_nothing_seen_is_nan() -> None:
    assert math.isnan(measured()[0])
