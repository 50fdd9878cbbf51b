"""Class counts equal a loop over images, on any number of ranks."""

import torch
from torch import Tensor

from impact_lightning.metrics.class_counts import ClassCounts
from tests.distributed import run_distributed

N, F, C = 60, 7, 4


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, F, generator=generator).relu(), torch.randint(C - 1, (N,), generator=generator)


def counted(*parts: slice) -> tuple[list[list[int]], list[int]]:
    metric = ClassCounts(F, C)
    for part in parts:
        metric.update(data()[0][part], data()[1][part])
    counts = metric.compute()
    return counts.fired.tolist(), counts.images.tolist()


def by_hand() -> list[list[int]]:
    peaks, labels = data()
    return [[sum(bool(peaks[i, f] > 0 and labels[i] == c) for i in range(N)) for c in range(C)] for f in range(F)]


def test_equals_a_loop_in_any_batches() -> None:
    fired, images = counted(slice(0, 25), slice(25, 25), slice(25, None))
    assert fired == by_hand()
    assert sum(images) == N
    assert images[-1] == 0  # a class without images


def counted_on_rank(rank: int) -> list[list[int]]:
    return counted(slice(0, 10) if rank == 0 else slice(10, None))[0]


def test_two_ranks_count_as_one() -> None:
    assert run_distributed(counted_on_rank) == [by_hand()] * 2
