"""The sparse reconstruction has the output and every gradient of the dense formula."""

import pytest
import torch
from torch import Tensor

from impact_lightning.sae.codes import codes_of
from impact_lightning.sae.gradient_memory import GradientMemory
from impact_lightning.sae.reconstruction import DeadCodes, Layout, Weights, reconstruct
from tests.sae.oracle import CASES, Problem, assert_all_close, gradients, largest, problem


def loss_of(outputs: Tensor, values: Tensor, from_dead: Tensor, target: Tensor) -> Tensor:
    errors = (outputs - target).square().sum((1, 2))
    return (
        errors @ torch.arange(1.0, len(errors) + 1).double() + 0.1 * values.sum() + (from_dead + target).square().sum()
    )


def dense_loss(task: Problem, target: Tensor, m: int, centred: bool, prefixes: tuple[int, ...], dead: Tensor) -> Tensor:
    z = (task.x - task.b_dec if centred else task.x) @ task.w_enc.T + task.b_enc
    codes = z * largest(z, m)
    outputs = torch.stack([codes[:, :width] @ task.w_dec[:width] + task.b_dec for width in prefixes])
    from_dead = z[:, dead].relu() @ task.w_dec[dead]
    return loss_of(outputs, codes, from_dead, target)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prefixes", [(60,), (5, 6, 33, 60)])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("in_memory", [True, False])
def test_equals_dense_autograd(case: str, prefixes: tuple[int, ...], centred: bool, in_memory: bool) -> None:
    task, target = problem(case), torch.randn(24, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    m, dead = 24 * 4, torch.tensor([0, 7, 8, 41])
    z = ((task.x - task.b_dec if centred else task.x) @ task.w_enc.T + task.b_enc).detach()
    weights = Weights(*task[1:])
    dead_part = DeadCodes(dead, z[:, dead].relu(), z[:, dead] > 0)
    xc = (task.x - task.b_dec).detach() if centred else None
    layout = Layout(xc, prefixes, GradientMemory() if in_memory else None)
    made = reconstruct(task.x, weights, codes_of(z * largest(z, m)), layout, dead_part)
    ours = loss_of(made.outputs, made.values, made.dead, target)
    theirs = dense_loss(task, target, m, centred, prefixes, dead)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert_all_close(gradients(ours, task), gradients(theirs, task))


def test_a_transcoder_may_have_an_output_of_another_width() -> None:
    task = problem("random")
    w_dec, b_dec = torch.randn(60, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    w_dec.requires_grad_()
    z = (task.x @ task.w_enc.T + task.b_enc) * 1
    codes = z * largest(z, 90)
    weights = Weights(task.w_enc, task.b_enc, w_dec, b_dec)
    made = reconstruct(task.x, weights, codes_of(codes.detach()), Layout(None, (60,)))
    leaves = (task.x, task.w_enc, task.b_enc, w_dec)
    ours, theirs = made.outputs.square().sum(), (codes @ w_dec + b_dec).square().sum()
    assert_all_close(gradients(ours, leaves), gradients(theirs, leaves))


def test_a_second_micro_batch_adds_to_the_gradient_in_reused_memory() -> None:
    memory = GradientMemory()
    steps: list[list[Tensor]] = []
    for reused in (memory, None):
        task = problem("random")
        layout = Layout((task.x - task.b_dec).detach(), (60,), reused)
        for _ in range(2):  # steps
            for leaf in task:
                leaf.grad = None
            for m in (40, 90):  # micro-batches
                z = task.pre_activations().detach()
                made = reconstruct(task.x, Weights(*task[1:]), codes_of(z * largest(z, m)), layout)
                made.outputs.square().sum().backward()
        steps.append([leaf.grad.clone() for leaf in task if leaf.grad is not None])
    assert_all_close(steps[0], steps[1], tolerance=0)


def test_reused_memory_is_handed_to_the_parameter_without_a_copy() -> None:
    task, memory = problem("random"), GradientMemory()
    z, xc = task.pre_activations().detach(), (task.x - task.b_dec).detach()
    places: list[int] = []
    for _ in range(2):
        task.w_dec.grad = None
        made = reconstruct(task.x, Weights(*task[1:]), codes_of(z * largest(z, 50)), Layout(xc, (60,), memory))
        made.outputs.sum().backward()
        assert task.w_dec.grad is not None
        places.append(task.w_dec.grad.data_ptr())
    assert places[0] == places[1]


def test_a_tangent_gradient_lacks_the_part_along_the_rows_of_the_decoder() -> None:
    task, dead = problem("random"), torch.tensor([0, 7])
    z, xc = task.pre_activations().detach(), (task.x - task.b_dec).detach()
    part = DeadCodes(dead, z[:, dead].relu(), z[:, dead] > 0)
    found = []
    for tangent in (False, True):
        layout = Layout(xc, (5, 60), tangent=tangent)
        made = reconstruct(task.x, Weights(*task[1:]), codes_of(z * largest(z, 90)), layout, part)
        found.append(gradients(made.outputs.square().sum() + made.values.sum() + made.dead.square().sum(), task))
    whole, tangent_ = found
    rows = task.w_dec.detach()
    whole[3] -= (whole[3] * rows).sum(1, keepdim=True) * rows
    assert_all_close(tangent_, whole)
