"""Relative reconstruction bias tells shrunken reconstructions from noisy ones."""

import math

import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.reconstruction_bias import ReconstructionBias
from tests.distributed import run_distributed


def pairs(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator)
    return x, 0.7 * x + 0.2 * torch.randn(n, 5, generator=generator)


def measured(*parts: tuple[Tensor, Tensor]) -> dict[str, float]:
    metric = ReconstructionBias()
    for part in parts:
        metric.update(*part)
    return {name: float(value) for name, value in metric.compute().items()}


def by_hand(x: Tensor, reconstruction: Tensor) -> dict[str, float]:
    energy = product = norm = length = 0.0
    for a, b in zip(x.double().tolist(), reconstruction.double().tolist(), strict=True):
        energy += sum(v * v for v in b)
        product += sum(u * v for u, v in zip(a, b, strict=True))
        norm, length = norm + math.hypot(*a), length + math.hypot(*b)
    return {"bias": energy / product, "norm_ratio": length / norm, "n": len(x)}


def test_equals_sums_by_hand() -> None:
    assert measured(pairs()) == pytest.approx(by_hand(*pairs()), rel=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_scaled_copy_is_biased_by_its_scale(scale: float) -> None:
    x, _ = pairs()
    assert measured((x, scale * x))["bias"] == pytest.approx(scale, rel=1e-12)


def test_is_the_inverse_of_the_best_scale() -> None:
    x, reconstruction = (part.double() for part in pairs())
    best = torch.linalg.lstsq(reconstruction.reshape(-1, 1), x.reshape(-1, 1)).solution.item()
    assert measured((x, reconstruction))["bias"] == pytest.approx(1 / best, rel=1e-12)


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


def test_half_inputs_are_summed_in_float64() -> None:
    x, reconstruction = (part.bfloat16() for part in pairs())
    assert measured((x, reconstruction)) == pytest.approx(by_hand(x, reconstruction), rel=1e-12)


def test_zero_reconstructions_have_no_bias() -> None:
    assert math.isnan(measured((torch.ones(2, 5), torch.zeros(2, 5)))["bias"])
    assert math.isnan(measured()["norm_ratio"])
