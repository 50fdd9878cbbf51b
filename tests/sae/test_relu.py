"""The L1 penalty is weighted with the length of decoder rows."""

import torch

from impact_lightning.sae.relu import ReLU
from tests.sae.oracle import assert_all_close, gradients, problem
from tests.sae.test_batch_topk import load


def test_loss_equals_the_definition() -> None:
    task = problem("random")
    sae = ReLU(10, 60, sparsity_weight=0.3).double()
    load(sae, task)
    with torch.no_grad():
        sae.w_dec.mul_(1.7)
    made = sae.objective(task.x)
    z = (task.x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    error = (z.relu() @ sae.w_dec + sae.b_dec - task.x).square().sum(1).mean()
    penalty = 0.3 * (z.relu() * sae.w_dec.norm(dim=1)).sum(1).mean()
    torch.testing.assert_close(made.penalty, penalty.detach(), rtol=0, atol=1e-10)
    leaves = (task.x, *sae.parameters())
    assert_all_close(gradients(made.loss, leaves), gradients(error + penalty, leaves))


def test_growing_the_decoder_does_not_lower_the_penalty() -> None:
    x = problem("random").x.detach()
    torch.manual_seed(0)
    sae = ReLU(10, 60).double()
    before = sae.objective(x)
    with torch.no_grad():  # the same reconstruction from smaller codes
        sae.w_enc.div_(4)
        sae.b_enc.div_(4)
        sae.w_dec.mul_(4)
    after = sae.objective(x)
    torch.testing.assert_close(after.penalty, before.penalty)
    torch.testing.assert_close(after.reconstruction, before.reconstruction)


def test_a_schedule_can_warm_the_penalty_up() -> None:
    x = problem("random").x.detach()
    sae = ReLU(10, 60).double()
    full = sae.objective(x).penalty
    sae.penalty_factor = 0.25
    torch.testing.assert_close(sae.objective(x).penalty, 0.25 * full)


def test_the_decoder_is_free() -> None:
    assert not ReLU(4, 8).parameter_groups()[0]["unit_rows"]
