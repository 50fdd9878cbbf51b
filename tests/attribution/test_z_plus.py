"""The z+ rule with three products is the rule of the definition, also where float32 leaves nothing but noise."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impact_lightning.attribution.rules import safe_div, split_sum
from impact_lightning.attribution.z_plus import ZPlus
from tests.attribution import literal


def layer(density: float = 1.0, *, n_in: int = 96, n_out: int = 40) -> tuple[nn.Linear, Tensor, Tensor]:
    """Return a layer, what it reads and the relevance of what it writes, in float64."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(n_in, n_out).double()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        linear.weight *= torch.rand(n_out, n_in, generator=generator) < density
    x = F.gelu(torch.randn(1, 30, n_in, generator=generator, dtype=torch.float64))
    return linear, x, torch.randn(1, 30, n_out, generator=generator, dtype=torch.float64)


@torch.no_grad()
def error(linear: nn.Linear, x: Tensor, relevance: Tensor, dtype: torch.dtype) -> float:
    """Return the largest error relative to the largest entry, of the rule in this precision."""
    wanted = literal.z_plus(x[0], linear.weight, relevance[0])
    linear, x = linear.to(dtype), x.to(dtype)
    found = ZPlus(linear)(x, linear(x), relevance.to(dtype))[0]
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("density", [1.0, 0.5, 1 / 64])
def test_equals_the_definition(density: float) -> None:
    assert error(*layer(density), torch.float64) <= 1e-10


@pytest.mark.parametrize(("density", "is_sparse"), [(1.0, False), (0.2, False), (1 / 64, True), (0.005, True)])
def test_float32_equals_the_definition(density: float, is_sparse: bool) -> None:
    linear, x, relevance = layer(density, n_in=768, n_out=192)
    assert ZPlus(linear).few == is_sparse
    assert error(linear, x, relevance, torch.float32) <= 1e-5


def test_relevance_dies_where_every_contribution_is_negative() -> None:
    linear, x, relevance = layer()
    with torch.no_grad():
        linear.weight[:20] = -linear.weight[:20].abs()
        x = x.abs()
        whole = relevance[..., 20:].sum()
        for dtype in (torch.float64, torch.float32):
            narrow = linear.to(dtype)
            found = ZPlus(narrow)(x.to(dtype), narrow(x.to(dtype)), relevance.to(dtype))
            torch.testing.assert_close(found.sum().double(), whole, atol=1e-4, rtol=0)


def test_layer_scale_is_folded() -> None:
    linear, x, relevance = layer()
    gamma = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        found = ZPlus(linear, gamma)(x, gamma * linear(x), relevance)
        wanted = literal.z_plus(x[0], gamma[:, None] * linear.weight, relevance[0])
    torch.testing.assert_close(found[0], wanted)


def test_safe_division_is_zero_by_zero_and_finite_close_to_it() -> None:
    a, b = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0.0, -0.0, 4.0])
    assert safe_div(a, b).tolist() == [0.0, 0.0, 0.5]


def test_residual_shares_are_per_image() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, r = (torch.randn(2, 5, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    r_a, r_b = split_sum(a, b, a + b, r)
    for i in range(2):
        for found, wanted in zip((r_a[i], r_b[i]), literal.residual(a[i], b[i], r[i]), strict=True):
            torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(r_a[i].sum() + r_b[i].sum(), r[i].sum(), atol=1e-6, rtol=0)
