"""Masks while they are learnt."""

import math

import pytest
import torch

from impact_lightning.circuits.masks import MaskKind, noise, relaxed

THETA = torch.tensor([[-1.0, -0.2, 0.0, 0.3, 2.0]], dtype=torch.float64)


def test_heaviside_masks_are_hard() -> None:
    found = relaxed(THETA, "heaviside", 1.0, 0.5, None)
    assert found.switches.tolist() == found.sizes.tolist() == [[0, 0, 1, 1, 1]]


@pytest.mark.parametrize(("progress", "temperature"), [(0.0, 2.0), (0.5, 0.2), (1.0, 0.02)])
def test_sigmoid_masks_grow_cold(progress: float, temperature: float) -> None:
    found = relaxed(THETA, "sigmoid", 2.0, progress, None)
    torch.testing.assert_close(found.switches, torch.sigmoid(THETA / temperature))


def test_a_hard_concrete_mask_is_the_formula() -> None:
    u = 0.3
    found = relaxed(THETA, "hard_concrete", 1.0, 0.0, torch.full_like(THETA, u))
    for theta, m, size in zip(*(part[0].tolist() for part in (THETA, *found)), strict=True):
        s = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + theta) / (2 / 3)))
        assert m == pytest.approx(min(1.0, max(0.0, 1.2 * s - 0.1)))
        assert size == pytest.approx(1 / (1 + math.exp(-(theta - 2 / 3 * math.log(0.1 / 1.1)))))


def test_the_size_of_a_hard_concrete_mask_is_how_often_it_is_not_zero() -> None:
    u = torch.rand(200_000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = relaxed(THETA.expand_as(u), "hard_concrete", 1.0, 0.0, u)
    torch.testing.assert_close((found.switches > 0).double().mean(0), found.sizes[0], rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", ["heaviside", "hard_concrete", "sigmoid"])
def test_gradients_turn_switches_off_that_cost(kind: MaskKind) -> None:
    theta = THETA.clone().requires_grad_()
    relaxed(theta, kind, 1.0, 0.0, torch.full_like(THETA, 0.5)).sizes.sum().backward()
    assert theta.grad is not None
    assert (theta.grad > 0).all()


def test_noise_is_a_function_of_seed_and_step() -> None:
    alone, beside = noise([7], 50, 3), noise([1, 7], 50, 3)
    assert torch.equal(alone[0], beside[1])
    assert not torch.equal(alone[0], beside[0])
    assert not torch.equal(alone, noise([7], 50, 4))
    assert 0 < float(alone.min()) < float(alone.max()) < 1
