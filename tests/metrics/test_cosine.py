"""MeanCosine is the mean over the tokens that have a cosine."""

import math

import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.cosine import MeanCosine
from tests.distributed import run_distributed


def pairs(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, reconstruction = torch.randn(2, n, 5, generator=generator)
    reconstruction[::7] = 0
    return x, reconstruction


def measured(*parts: tuple[Tensor, Tensor]) -> dict[str, float]:
    metric = MeanCosine()
    for part in parts:
        metric.update(*part)
    return {name: float(value) for name, value in metric.compute().items()}


def by_hand(x: Tensor, reconstruction: Tensor) -> dict[str, float]:
    cosines = [
        sum(u * v for u, v in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
        for a, b in zip(x.double().tolist(), reconstruction.double().tolist(), strict=True)
        if any(a) and any(b)
    ]
    return {"cosine": sum(cosines) / len(cosines), "n": len(cosines), "undefined": len(x) - len(cosines)}


def test_equals_a_loop() -> None:
    assert measured(pairs()) == pytest.approx(by_hand(*pairs()), rel=1e-12)


def test_batches_in_any_order_equal_the_whole() -> None:
    x, reconstruction = pairs()
    parts = [(x[part], reconstruction[part]) for part in (slice(9, 40), slice(3, 3), slice(0, 9))]
    assert measured(*parts) == pytest.approx(measured((x, reconstruction)), rel=1e-12)


def of_rank(rank: int, cut: int) -> dict[str, float]:
    x, reconstruction = pairs()
    part = slice(0, cut) if rank == 0 else slice(cut, None)
    return measured((x[part], reconstruction[part])) if cut < 40 or rank == 0 else measured()


@pytest.mark.parametrize("cut", [11, 40])  # with 40, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [pytest.approx(measured(pairs()), rel=1e-12)] * 2


def test_nothing_seen_is_nan() -> None:
    assert math.isnan(measured()["cosine"])
