"""Gated autoencoders decide with one path and measure with another."""

import torch

from impact_lightning.sae.gated import Gated
from tests.sae.oracle import assert_all_close, gradients, problem
from tests.sae.test_batch_topk import load


def test_loss_equals_the_definition() -> None:
    task = problem("random")
    sae = Gated(10, 60, sparsity_weight=0.3).double()
    load(sae, task)
    with torch.no_grad():
        sae.r_mag.copy_(0.1 * torch.randn(60))
        sae.b_mag.copy_(0.1 * torch.randn(60))
    made = sae.objective(task.x)
    product = (task.x - sae.b_dec) @ sae.w_enc.T
    gate, magnitude = product + sae.b_enc, sae.r_mag.exp() * product + sae.b_mag
    codes = (gate > 0) * magnitude.relu()
    error = (codes @ sae.w_dec + sae.b_dec - task.x).square().sum(1).mean()
    sparsity = 0.3 * (gate.relu() * sae.w_dec.norm(dim=1)).sum(1).mean()
    from_gates = gate.relu() @ sae.w_dec.detach() + sae.b_dec.detach()
    theirs = error + sparsity + (from_gates - task.x).square().sum(1).mean()
    leaves = (task.x, *sae.parameters())
    assert_all_close(gradients(made.loss, leaves), gradients(theirs, leaves))


def test_every_parameter_gets_a_gradient() -> None:
    sae = Gated(10, 60).double()
    sae.objective(problem("random").x.detach()).loss.backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in sae.parameters())
