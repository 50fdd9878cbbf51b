"""Dead latents are counted in tokens of all ranks, and AuxK reaches their encoder and nothing else."""

import pytest
import torch
from torch import Tensor

from impact_lightning.sae.batch_topk import BatchTopK
from impact_lightning.sae.dead_latents import DeadLatents, aux_loss, dead_codes
from impact_lightning.sae.reconstruction import Weights
from tests.distributed import run_distributed
from tests.sae.oracle import assert_all_close, gradients, largest, problem

DEAD = torch.tensor([3, 11, 12, 40, 55])


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("relu", [True, False])
def test_dead_codes_equal_a_sort_of_each_token(k: int, relu: bool) -> None:
    task = problem("random")
    dead = dead_codes(task.x - task.b_dec, Weights(*task[1:]), DEAD, k, relu)
    z = task.pre_activations()[:, DEAD].detach()
    want = torch.zeros_like(z)
    for row, values in enumerate(z):
        for place in values.argsort(descending=True)[:k]:
            want[row, place] = values[place].relu() if relu else values[place]
    torch.testing.assert_close(dead.values, want, rtol=0, atol=1e-12)


def model(relu: bool = True, k_aux: int | None = 3) -> BatchTopK:
    task = problem("random")
    sae = BatchTopK(10, 60, k=4, dead_after=100, k_aux=k_aux, aux_relu=relu).double()
    with torch.no_grad():
        for name, value in zip(("w_enc", "b_enc", "w_dec", "b_dec"), task[1:], strict=True):
            getattr(sae, name).copy_(value)
    sae.dead.silent[DEAD] = 100
    return sae


def dense_aux(sae: BatchTopK, x: Tensor, relu: bool, k: int) -> Tensor:
    z = (x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    error = (x - (z * largest(z, 4 * len(x))) @ sae.w_dec - sae.b_dec).detach()
    best = z[:, DEAD].topk(k, dim=1)
    values = best.values.relu() if relu else best.values
    from_dead = torch.zeros_like(z[:, DEAD]).scatter(1, best.indices, values) @ sae.w_dec[DEAD]
    share = (error - from_dead).square().sum() / (error - error.mean(0)).square().sum()
    return share * (x - x.mean(0)).square().sum(1).mean() / 32


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_loss_and_gradients_equal_dense_autograd(relu: bool, k: int) -> None:
    x = problem("random").x.detach()
    sae = model(relu, k_aux=k)
    made = sae.objective(x)
    z = (x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    error = x - (z * largest(z, 4 * len(x))) @ sae.w_dec - sae.b_dec
    theirs = error.square().sum(1).mean() + dense_aux(sae, x, relu, k)
    torch.testing.assert_close(made.loss, theirs, rtol=0, atol=1e-10)
    leaves = tuple(sae.parameters())
    assert_all_close(gradients(made.loss, leaves), gradients(theirs, leaves))


def test_scaling_activations_scales_aux_as_the_error() -> None:
    error, from_dead, target = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = aux_loss(3 * error, 3 * from_dead, 3 * target + 5)
    torch.testing.assert_close(scaled, 9 * aux_loss(error, from_dead, target))


def test_aux_moves_dead_encoder_rows_and_leaves_living_rows_alone() -> None:
    x = problem("random").x.detach()
    sae = model()
    names = dict(sae.named_parameters())
    # The gradient of AuxK alone is the difference of two gradients of the loss.
    with_aux = gradients(sae.objective(x).loss, tuple(names.values()))
    sae = model(k_aux=0)
    without = gradients(sae.objective(x).loss, tuple(sae.parameters()))
    aux = dict(zip(names, (a - b for a, b in zip(with_aux, without, strict=True)), strict=True))
    alive = torch.ones(60, dtype=torch.bool).index_fill_(0, DEAD, False)
    assert bool((aux["w_enc"][DEAD].abs().sum(1) > 1e-6).all())
    for name in ("w_enc", "w_dec", "b_enc"):
        assert float(aux[name][alive].abs().max()) < 1e-15


def test_aux_is_zero_without_an_error_to_explain() -> None:
    from_dead = torch.ones(4, 3, requires_grad=True)
    loss = aux_loss(torch.full((4, 3), 2.0), from_dead, torch.eye(4, 3))  # every token's error is the mean error
    loss.backward()
    assert loss.item() == 0
    assert from_dead.grad is not None
    assert not from_dead.grad.any()


def test_silence_is_counted_in_tokens() -> None:
    dead = DeadLatents(3, dead_after=10)
    for counts in ([1, 0, 0], [0, 0, 5], [1, 0, 0]):
        dead.update(torch.tensor(counts), 6)
    assert dead.silent.tolist() == [0, 18, 6]
    assert dead.indices().tolist() == [1]


def silence_of_rank(rank: int) -> list[int]:
    dead = DeadLatents(3)
    dead.update(torch.tensor([0, rank, 1 - rank]), 8)
    return [int(tokens) for tokens in dead.silent]


def test_a_latent_that_fires_on_another_rank_is_not_silent() -> None:
    assert run_distributed(silence_of_rank) == [[8, 0, 0]] * 2


def aux_of_rank(rank: int, error: Tensor, from_dead: Tensor) -> float:
    part = slice(0, 5) if rank == 0 else slice(5, None)
    return float(aux_loss(error[part], from_dead[part], error[part] + 1))


def test_ranks_share_the_variance_of_the_error() -> None:
    error, from_dead = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = run_distributed(aux_of_rank, error, from_dead)
    assert sum(parts) / 2 == pytest.approx(float(aux_loss(error, from_dead, error + 1)), rel=1e-12)
