"""Matryoshka's sparse step has the loss and gradients of one dense reconstruction per prefix."""

import pytest
import torch

from impact_lightning.sae.matryoshka import Matryoshka
from impact_lightning.types import UserError
from tests.sae.oracle import CASES, assert_all_close, gradients, largest, problem
from tests.sae.test_batch_topk import load


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0]])
def test_loss_and_gradients_equal_dense_autograd(case: str, weights: list[float] | None) -> None:
    task, prefixes = problem(case), [4, 30, 60]
    sae = Matryoshka(10, 60, k=4, prefixes=prefixes, prefix_weights=weights).double()
    load(sae, task)
    sae.dead.silent[:9] = sae.dead.dead_after
    made = sae.objective(task.x)
    z = (task.x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    codes = z * largest(z, 4 * 24)
    errors = [codes[:, :width] @ sae.w_dec[:width] + sae.b_dec - task.x for width in prefixes]
    theirs = sum(w * error.square().sum(1).mean() for w, error in zip(weights or [1 / 3] * 3, errors, strict=True))
    error = errors[-1].detach()  # AuxK explains what the whole dictionary leaves
    best = z[:, :9].topk(5, dim=1)
    from_dead = torch.zeros_like(z[:, :9]).scatter(1, best.indices, best.values.relu()) @ sae.w_dec[:9]
    variance = (task.x - task.x.mean(0)).square().sum(1).mean().detach()
    share = (error + from_dead).square().sum() / (error - error.mean(0)).square().sum()
    theirs = theirs + share * variance / 32
    leaves = tuple(sae.parameters())
    torch.testing.assert_close(made.loss, theirs, rtol=0, atol=1e-10)
    assert_all_close(gradients(made.loss, leaves), gradients(theirs, leaves))


def test_groups_of_the_paper_are_the_default() -> None:
    assert Matryoshka(8, 64).prefixes == (4, 12, 28, 64)


@pytest.mark.parametrize("prefixes", [[30, 20, 60], [10, 50], [0, 60], [10, 10, 60]])
def test_refuses_prefixes_that_do_not_ascend_to_all_latents(prefixes: list[int]) -> None:
    with pytest.raises(UserError, match="prefixes"):
        Matryoshka(10, 60, prefixes=prefixes)


def test_refuses_another_number_of_weights() -> None:
    with pytest.raises(UserError, match="prefix_weights"):
        Matryoshka(10, 60, prefix_weights=[1.0])
