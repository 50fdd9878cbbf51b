"""Scaled activations have the size that a mode promises, and folding the constants changes no output."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from impact_lightning.activations.batch import site_statistics
from impact_lightning.sae.scaling import Scaling, ScalingMode
from impact_lightning.types import UserError

MODES: tuple[ScalingMode, ...] = get_args(ScalingMode)


def sample() -> Tensor:
    return 3 * torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) + torch.arange(16.0)


def fitted(mode: ScalingMode, x: Tensor) -> Scaling:
    scaling = Scaling(16, mode)
    scaling.fit(site_statistics(x), x)
    return scaling


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


def test_none_changes_no_bit() -> None:
    assert torch.equal(fitted("none", sample())(sample()), sample())


@pytest.mark.parametrize("mode", MODES)
def test_undoing_gives_raw_activations_back(mode: ScalingMode) -> None:
    scaling, x = fitted(mode, sample()), sample()
    torch.testing.assert_close(scaling.undo(scaling(x), x), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_mean_of_the_site_is_known_in_every_mode(mode: ScalingMode) -> None:
    torch.testing.assert_close(fitted(mode, sample()).mean, sample().mean(0))


def test_rows_that_are_all_the_same_keep_their_scale() -> None:
    assert fitted("mean_norm", torch.ones(5, 16)).scale == 1


def test_refuses_activations_that_are_not_finite() -> None:
    with pytest.raises(UserError, match="no scale mends"):
        fitted("unit_msq", torch.full((5, 16), torch.inf))
