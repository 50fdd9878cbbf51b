"""The root mean square is taken over all gradients together."""

import math

import pytest
import torch
from torch import Tensor

from impact_lightning.sparsity.gradient_rms import GradientRule, scale_gradient


def gradients(size: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [size * torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), (2, 2, 2))]


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("rule", ["clip", "normalise", "none"])
def test_the_rule_scales_all_alike(size: float, rule: GradientRule) -> None:
    given, scaled = gradients(size), gradients(size)
    numbers = [value for part in given for value in part.flatten().tolist()]
    rms = math.sqrt(sum(value**2 for value in numbers) / len(numbers))
    factor = {"clip": min(1.0, 1 / rms), "normalise": 1 / (rms + 1e-5), "none": 1.0}[rule]
    assert scale_gradient(scaled, rule) == pytest.approx(rms, rel=1e-6)
    for before, after in zip(given, scaled, strict=True):
        torch.testing.assert_close(after, before * factor)


def test_a_small_gradient_is_not_touched_by_clipping() -> None:
    scaled = gradients(0.1)
    scale_gradient(scaled, "clip")
    assert all(torch.equal(after, before) for after, before in zip(scaled, gradients(0.1), strict=True))
