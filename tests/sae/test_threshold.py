"""The calibrated threshold gives held-out tokens exactly k active latents on average, on any number of ranks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from impact_lightning.sae import threshold
from impact_lightning.sae.batch_topk import BatchTopK
from impact_lightning.sae.threshold import Calibration
from impact_lightning.types import UserError
from tests.distributed import run_distributed


def dictionary(k: float = 5, dtype: torch.dtype = torch.float32) -> BatchTopK:
    torch.manual_seed(0)
    return BatchTopK(16, 120, k=k).to(dtype).eval()


def tokens(n: int = 600, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)


def calibrate(sae: BatchTopK, batches: Callable[[], list[Tensor]]) -> Calibration:
    (found,) = threshold.calibrate([sae], lambda: [[x] for x in batches()])
    return found


def split(x: Tensor, size: int) -> Callable[[], list[Tensor]]:
    return lambda: list(x.split(size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [0.5, 5, 7.25])
def test_equals_sorting_all_pre_activations(dtype: torch.dtype, k: float) -> None:
    sae, x = dictionary(k, dtype), tokens(dtype=dtype)
    found = calibrate(sae, split(x, 600))
    z = sae.pre_activations(x).detach().flatten().sort(descending=True).values
    wanted = round(600 * k)
    assert z[wanted] <= found.theta < z[wanted - 1]
    assert found.l0 == wanted / 600
    assert float((sae.encode(x) > 0).sum() / 600) == pytest.approx(found.l0)


def test_held_out_tokens_have_k_active_latents() -> None:
    sae = dictionary()
    calibrate(sae, split(tokens(100_000), 10_000))
    other = torch.randn(100_000, 16, generator=torch.Generator().manual_seed(2))
    active = sum(int((sae.encode(x) > 0).sum()) for x in other.split(10_000))
    assert active / 100_000 == pytest.approx(5, rel=5e-3)


def test_ties_at_the_threshold_are_all_active() -> None:
    sae, x = dictionary(1), torch.ones(30, 16)
    found = calibrate(sae, split(x, 7))
    assert found.l0 * 30 % 30 == 0  # equal tokens have equal codes
    assert float((sae.encode(x) > 0).sum() / 30) == pytest.approx(found.l0)


def test_fewer_positives_than_wanted_give_a_threshold_of_zero() -> None:
    sae = dictionary(100)
    found = calibrate(sae, split(tokens(), 100))
    assert found.theta == sae.theta == 0
    assert found.l0 < 100


def test_training_puts_a_calibrated_threshold_out_of_date() -> None:
    sae = dictionary()
    theta = calibrate(sae, split(tokens(), 100)).theta
    sae.train().objective(tokens(64))
    assert sae.theta != theta
    assert sae.threshold.isnan()


def calibration_of_rank(rank: int) -> tuple[float, ...]:
    part = tokens()[:450] if rank == 0 else tokens()[450:]  # of different length, in batches of different number
    return tuple(calibrate(dictionary(), split(part, 50)))


def test_two_ranks_agree_with_one() -> None:
    alone = calibrate(dictionary(), split(tokens(), 600))
    assert isinstance(alone, Calibration)
    for found in run_distributed(calibration_of_rank):
        assert found == pytest.approx(tuple(alone), rel=1e-6)


def test_refuses_no_tokens() -> None:
    with pytest.raises(UserError, match="no tokens"):
        calibrate(dictionary(), list)


def test_refuses_what_is_not_finite() -> None:
    x = tokens()
    x[3, 4] = torch.nan
    with pytest.raises(UserError, match="1 of 600 tokens"):
        calibrate(dictionary(), split(x, 100))


def test_several_are_calibrated_in_the_passes_of_one() -> None:
    passes = []

    def batches() -> list[list[Tensor]]:
        passes.append(1)
        return [[x, 2 * x, x] for x in tokens().split(200)]

    several = [dictionary(3), dictionary(5), dictionary(1000)]  # the last one ends after the first pass
    found = threshold.calibrate(several, batches)
    alone = [dictionary(3), dictionary(5), dictionary(1000)]
    inputs = [tokens(), 2 * tokens(), tokens()]
    assert found == [calibrate(sae, split(x, 600)) for sae, x in zip(alone, inputs, strict=True)]
    assert len(passes) == 2
