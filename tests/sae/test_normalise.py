"""Normalised activations have the size that a mode promises, and folding the constants changes no output."""

import pytest
import torch
from torch import Tensor

from impact_lightning.sae.normalise import Mode, Normalise
from impact_lightning.types import UserError
from tests.distributed import run_distributed

MODES: list[Mode] = ["none", "mean_norm", "unit_msq", "layer_norm"]


def sample() -> Tensor:
    return 3 * torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) + torch.arange(16.0)


def fitted(mode: Mode, x: Tensor) -> Normalise:
    normalise = Normalise(16, mode)
    normalise.fit(x)
    return normalise


def test_mean_norm_gives_mean_zero_and_the_length_of_a_standard_normal() -> None:
    x = fitted("mean_norm", sample())(sample())
    torch.testing.assert_close(x.mean(0), torch.zeros(16), rtol=0, atol=1e-5)
    assert x.norm(dim=1).mean().item() == pytest.approx(4)


def test_unit_msq_gives_a_mean_square_of_one() -> None:
    assert fitted("unit_msq", sample())(sample()).square().sum(1).mean().item() == pytest.approx(1)


def test_layer_norm_standardises_each_token() -> None:
    x = fitted("layer_norm", sample())(sample())
    torch.testing.assert_close(x.mean(1), torch.zeros(500), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std(1), torch.ones(500), rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_undoing_gives_raw_activations_back(mode: Mode) -> None:
    normalise, x = fitted(mode, sample()), sample()
    torch.testing.assert_close(normalise.undo(normalise(x), x), x, rtol=1e-5, atol=1e-5)


def constants_of_rank(rank: int, mode: Mode) -> tuple[float, list[float]]:
    scale, mean = fitted(mode, sample()[:100] if rank == 0 else sample()[100:]).constants()
    return scale, mean.tolist()


@pytest.mark.parametrize("mode", ["mean_norm", "unit_msq"])
def test_two_ranks_agree_with_one(mode: Mode) -> None:
    scale, mean = fitted(mode, sample()).constants()
    for theirs in run_distributed(constants_of_rank, mode):
        assert theirs == (pytest.approx(scale, rel=1e-6), pytest.approx(mean.tolist(), rel=1e-5))


def test_refuses_to_fold_what_depends_on_the_token() -> None:
    with pytest.raises(UserError, match="layer_norm"):
        fitted("layer_norm", sample()).constants()


@pytest.mark.parametrize("x", [torch.ones(5, 16), torch.empty(0, 16), torch.full((5, 16), torch.nan)])
def test_refuses_a_sample_without_a_size(x: Tensor) -> None:
    with pytest.raises(UserError, match="normalisation"):
        fitted("mean_norm", x)
