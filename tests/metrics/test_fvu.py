"""FVU is the pooled share of unexplained variance, also where the mean is large and batches are uneven."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.fvu import FVU
from tests.distributed import run_distributed


def pairs(n: int = 50, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator) * torch.tensor([0.1, 1.0, 2.0, 3.0]) + mean
    return x, x + 0.3 * torch.randn(n, 4, generator=generator)


def measured(*parts: tuple[Tensor, Tensor]) -> dict[str, float]:
    metric = FVU(4)
    for part in parts:
        metric.update(*part)
    return {name: float(value) for name, value in metric.compute().items()}


def by_hand(x: Tensor, reconstruction: Tensor) -> dict[str, float]:
    a, b = x.double().numpy(), reconstruction.double().numpy()
    error = float(((a - b) ** 2).sum())
    fvu = error / float(np.var(a, axis=0).sum() * len(a))
    return {"fvu": fvu, "ev": 1 - fvu, "nmse_origin": error / float((a**2).sum()), "n": len(a)}


@pytest.mark.parametrize("mean", [0.0, 1e4])  # E[x²] - E[x]² in float32 would be noise at 1e4
def test_equals_numpy(mean: float) -> None:
    assert measured(pairs(mean=mean)) == pytest.approx(by_hand(*pairs(mean=mean)), rel=1e-12)


def test_the_mean_as_reconstruction_explains_nothing() -> None:
    x, _ = pairs()
    assert measured((x.double(), x.double().mean(0).expand(50, 4)))["fvu"] == pytest.approx(1.0, rel=1e-12)


def test_tokens_of_images_are_tokens() -> None:
    x, reconstruction = pairs()
    assert measured((x.reshape(5, 10, 4), reconstruction.reshape(5, 10, 4))) == measured((x, reconstruction))


def test_batches_in_any_order_equal_the_whole() -> None:
    x, reconstruction = pairs(mean=1e4)
    parts = [(x[part], reconstruction[part]) for part in (slice(31, 50), slice(7, 7), slice(0, 31))]
    assert measured(*parts) == pytest.approx(measured((x, reconstruction)), rel=1e-12)  # float64 sums in another order


def of_rank(rank: int, cut: int) -> dict[str, float]:
    x, reconstruction = pairs(mean=100.0)
    part = slice(0, cut) if rank == 0 else slice(cut, None)
    return measured((x[part], reconstruction[part]))


@pytest.mark.parametrize("cut", [13, 50])  # with 50, the second rank has only an empty batch
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    expected = pytest.approx(measured(pairs(mean=100.0)), rel=1e-12)
    assert run_distributed(of_rank, cut) == [expected] * 2


def of_rank_that_sees_nothing(rank: int) -> dict[str, float]:
    return measured(pairs()) if rank == 1 else measured()


def test_a_rank_without_data_changes_nothing() -> None:
    assert run_distributed(of_rank_that_sees_nothing) == [pytest.approx(measured(pairs()), rel=1e-12)] * 2


def test_merged_metrics_equal_the_whole() -> None:
    x, reconstruction = pairs()
    first, second = FVU(4), FVU(4)
    first.update(x[:9], reconstruction[:9])
    second.update(x[9:], reconstruction[9:])
    first.merge_state(second)
    assert float(first.compute()["fvu"]) == pytest.approx(by_hand(x, reconstruction)["fvu"], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_summed_in_float64(dtype: torch.dtype) -> None:
    x, reconstruction = (part.to(dtype) for part in pairs())
    assert measured((x, reconstruction)) == pytest.approx(by_hand(x, reconstruction), rel=1e-12)


def test_constant_activations_have_no_fvu() -> None:
    x = torch.full((9, 4), 0.1)
    assert math.isnan(measured((x[:2], x[:2] + 1), (x[2:], x[2:] + 1))["fvu"])


def test_nothing_seen_is_nan() -> None:
    assert math.isnan(measured()["fvu"])
    assert math.isnan(measured((torch.zeros(0, 4), torch.zeros(0, 4)))["nmse_origin"])
