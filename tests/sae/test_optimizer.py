"""A step of `DictionaryAdam` is project, clip, Adam and unit rows, and resumes bit for bit."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.sae.optimizer import DictionaryAdam


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    w_dec = torch.randn(700, 6, generator=generator, dtype=torch.float64)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    return [w_dec.requires_grad_(), torch.randn(9, dtype=torch.float64, generator=generator).requires_grad_()]


def with_gradients(leaves: list[Tensor], step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for leaf in leaves:
        leaf.grad = scale * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)


def optimizer_of(leaves: list[Tensor], max_norm: float | None = 1.0) -> DictionaryAdam:
    groups: list[dict[str, Any]] = [{"params": leaves[:1], "unit_rows": True}, {"params": leaves[1:]}]
    return DictionaryAdam(groups, lr=0.01, max_norm=max_norm)


@pytest.mark.parametrize("max_norm", [None, 1.0, 1e6])
def test_three_steps_equal_three_manual_steps(max_norm: float | None) -> None:
    ours, theirs = weights(), weights()
    optimizer, adam = optimizer_of(ours, max_norm), torch.optim.Adam(theirs, lr=0.01, betas=(0.9, 0.99))
    for step in range(3):
        with_gradients(ours, step)
        optimizer.step()
        with_gradients(theirs, step)
        with torch.no_grad():
            rows, g = theirs[0], theirs[0].grad
            assert g is not None
            g -= (g * rows).sum(1, keepdim=True) * rows
            norm = torch.cat([leaf.grad.flatten() for leaf in theirs if leaf.grad is not None]).norm()
            if max_norm is not None and norm > max_norm:
                for leaf in theirs:
                    leaf.grad *= max_norm / norm
            adam.step()
            rows /= rows.norm(dim=1, keepdim=True)
        assert optimizer.gradient_norm is not None
        torch.testing.assert_close(optimizer.gradient_norm, norm)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-8)  # the fused kernel divides by float32 numbers


def test_rows_have_unit_length_after_a_step() -> None:
    leaves = weights()
    with_gradients(leaves, 0)
    optimizer_of(leaves).step()
    torch.testing.assert_close(leaves[0].norm(dim=1), torch.ones(700, dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_projected_group_is_not_projected_again() -> None:
    leaves = weights()
    with_gradients(leaves, 0)
    assert leaves[0].grad is not None
    given = leaves[0].grad.clone()
    DictionaryAdam([{"params": leaves[:1], "unit_rows": True, "projected": True}], max_norm=None).step()
    assert torch.equal(leaves[0].grad, given)


def test_resumes_bit_for_bit() -> None:
    leaves = weights()
    optimizer = optimizer_of(leaves)
    for step in range(2):
        with_gradients(leaves, step)
        optimizer.step()
    resumed = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    second = optimizer_of(resumed)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for chosen, optimizer_ in ((leaves, optimizer), (resumed, second)):
        for step in range(2, 5):
            with_gradients(chosen, step)
            optimizer_.step()
    assert all(torch.equal(a, b) for a, b in zip(leaves, resumed, strict=True))


def test_a_non_negative_group_stays_so() -> None:
    theta = torch.zeros(5, requires_grad=True)
    theta.grad = torch.ones(5)
    DictionaryAdam([{"params": [theta], "non_negative": True}]).step()
    assert not theta.any()


def test_calls_its_closure_once_with_gradients_enabled() -> None:
    leaf, calls = torch.ones(3, requires_grad=True), []
    optimizer = DictionaryAdam([leaf])

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        leaf.square().sum().backward()
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert calls == [True]
