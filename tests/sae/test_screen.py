"""Screens find every pre-activation above a floor, whatever their arithmetic."""

import pytest
import torch
from torch import Tensor

from impact_lightning.sae import screen
from impact_lightning.sae.screen import DirectScreen, RoundedScreen, Screen

SCREENS = [DirectScreen(), RoundedScreen()]


def quarters(*shape: int, seed: int = 0) -> Tensor:
    """Return multiples of a quarter, whose products float32 holds exactly."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(4).round() / 4


@pytest.mark.parametrize("finder", SCREENS, ids=["direct", "rounded"])
@pytest.mark.parametrize("shape", [(33, 20, 70), (1, 5, 3), (7, 64, 1000), (129, 16, 40)])
@pytest.mark.parametrize("floor", [0.0, 0.25, 3.0, 1e9])
def test_finds_what_the_dense_comparison_finds(finder: Screen, shape: tuple[int, int, int], floor: float) -> None:
    n_rows, width, n_latents = shape
    x, w, b = quarters(n_rows, width), quarters(n_latents, width, seed=1), quarters(n_latents, seed=2)
    z = x @ w.T + b
    latents, rows = (z > floor).T.nonzero(as_tuple=True)
    found = finder.above(x, w, b, floor)
    assert torch.equal(found.latents, latents)
    assert torch.equal(found.rows, rows)
    assert torch.equal(found.values, z[rows, latents])


@pytest.mark.parametrize("finder", SCREENS, ids=["direct", "rounded"])
def test_finds_nothing_in_an_empty_batch(finder: Screen) -> None:
    assert len(finder.above(torch.ones(0, 4), torch.ones(6, 4), torch.zeros(6), 0.0).values) == 0


@pytest.mark.parametrize("bias", [0.0, 5.0])
@pytest.mark.parametrize("spread", [0.0, 3.0])  # rows of very different length are the hard case of the bound
def test_the_rounded_screen_loses_nothing(bias: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(spread * torch.randn(200, 1, generator=generator))
    x = torch.randn(200, 48, generator=generator) * scale
    w, b = torch.randn(500, 48, generator=generator), bias * torch.randn(500, generator=generator)
    z = x.double() @ w.double().T + b.double()
    for floor in (0.0, float(z.quantile(0.9)), float(z.max()) * 0.999):
        found = RoundedScreen().above(x, w, b, floor)
        margin = 1e-4 * float(scale.max()) * 48  # float32 may place what is this close on either side
        surely = (z > floor + margin).T.nonzero()
        have = set(zip(found.latents.tolist(), found.rows.tolist(), strict=True))
        assert {(int(latent), int(row)) for latent, row in surely} <= have


def test_the_bound_of_the_rounded_screen_holds_for_every_entry() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*shape, generator=generator) for shape in ((64, 96), (300, 96), (300,)))
    rounded, bounds = RoundedScreen()._round_encoder(w, b)
    x_rounded, error = screen._round_inputs(x, bounds)
    z, z_rounded = x.double() @ w.double().T + b.double(), (x_rounded @ rounded.T).double()
    allowed = error.double()[:, None] + screen.UNIT * z_rounded.abs()
    assert bool(((z - z_rounded).abs() <= allowed).all())
    assert bool((z - z_rounded).abs().amax() > 0.02 * allowed.amax())  # and is not absurdly wide


def test_rounding_down_never_rounds_up() -> None:
    x = torch.cat(
        [torch.randn(1000, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1.0, -1.0, 1e-30])]
    )
    down = screen._round_down(x).float()
    assert bool((down <= x).all())
    assert bool((down >= x - 2.0**-7 * x.abs() - 1e-38).all())
