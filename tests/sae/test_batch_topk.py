"""A BatchTopK training step has the loss and gradients of the dense definition, at any number of ranks."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.sae.autoencoder import SAE
from impact_lightning.sae.batch_topk import BatchTopK
from impact_lightning.sae.matryoshka import Matryoshka
from impact_lightning.sae.optimizer import DictionaryAdam
from impact_lightning.sae.screen import ScreenName
from impact_lightning.types import UserError
from tests.distributed import run_distributed
from tests.sae.oracle import CASES, Problem, assert_all_close, gradients, largest, problem

SCREENS: list[ScreenName] = ["fp32", "bf16"]


def load(sae: SAE, task: Problem) -> None:
    with torch.no_grad():
        for name, value in zip(("w_enc", "b_enc", "w_dec", "b_dec"), task[1:], strict=True):
            getattr(sae, name).copy_(value)


def dense_loss(sae: SAE, x: Tensor, k: float) -> Tensor:
    z = (x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    codes = z * largest(z, round(len(x) * k))
    return (codes @ sae.w_dec + sae.b_dec - x).square().sum(1).mean()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("k", [1, 4, 2.37, 100])  # 100 is more than there are latents
def test_loss_and_gradients_equal_dense_autograd(case: str, screen: ScreenName, k: float) -> None:
    task = problem(case)
    sae = BatchTopK(10, 60, k=k, screen=screen).double()
    load(sae, task)
    made = sae.objective(task.x)
    theirs = dense_loss(sae, task.x, k)
    torch.testing.assert_close(made.loss, theirs, rtol=0, atol=1e-10)
    leaves = (task.x, *sae.parameters())
    assert_all_close(gradients(made.loss, leaves), gradients(theirs, leaves))


def test_a_batch_without_positives_gives_the_bias() -> None:
    task = problem("none")
    sae = BatchTopK(10, 60, k=4).double()
    load(sae, task)
    made = sae.objective(task.x)
    torch.testing.assert_close(made.output, task.b_dec.detach().expand(24, -1))
    assert made.l0 == 0
    assert not made.counts.any()


def test_every_parameter_gets_a_gradient() -> None:
    task = problem("random")
    sae = BatchTopK(10, 60, k=4).double()
    load(sae, task)
    sae.objective(task.x).loss.backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in sae.parameters())


@pytest.mark.parametrize("screen", SCREENS)
def test_two_steps_equal_two_dense_steps(screen: ScreenName) -> None:
    sae = BatchTopK(10, 60, k=4, screen=screen).double()
    sae.take_shortcuts()
    dense = copy.deepcopy(sae)
    ours, theirs = (
        DictionaryAdam(sae.parameter_groups(), max_norm=None),
        torch.optim.Adam(dense.parameters(), 3e-4, (0.9, 0.99)),
    )
    for seed in range(2):
        x = problem("random", seed=seed).x.detach()
        ours.zero_grad()
        sae.objective(x).loss.backward()
        ours.step()
        theirs.zero_grad()
        dense_loss(dense, x, 4).backward()
        with torch.no_grad():
            rows, g = dense.w_dec, dense.w_dec.grad
            assert g is not None
            g -= (g * rows).sum(1, keepdim=True) * rows
            theirs.step()
            rows.div_(rows.norm(dim=1, keepdim=True))
    assert_all_close([*sae.parameters()], [*dense.parameters()], tolerance=1e-9)


def train(sae: SAE, batches: list[Tensor], rank: int = 0, world: int = 1) -> list[float]:
    """Train as ranks do, whose gradients are averaged; return the losses."""
    optimizer = DictionaryAdam(sae.parameter_groups(), lr=0.01)
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        made = sae.objective(batch[rank::world])
        made.loss.backward()
        mean = [
            torch.stack([made.loss.detach()]),
            *(weight.grad for weight in sae.parameters() if weight.grad is not None),
        ]
        if world > 1:
            for tensor in mean:
                torch.distributed.all_reduce(tensor)
                tensor /= world
        losses.append(float(mean[0]))
        optimizer.step()
    return losses


def trained(rank: int, world: int, screen: ScreenName, name: str) -> tuple[list[float], list[list[float]], list[int]]:
    torch.manual_seed(0)
    sae = {"BatchTopK": BatchTopK, "Matryoshka": Matryoshka}[name](10, 64, k=3, screen=screen, dead_after=60).double()
    batches = [problem("random", n_rows=22, seed=seed).x.detach() for seed in range(5)]  # 22 is uneven on four ranks
    losses = train(sae, batches, rank, world)
    return losses, [w.detach().flatten().tolist() for w in sae.parameters()], sae.dead.silent.tolist()


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("screen", "name"), [("fp32", "BatchTopK"), ("bf16", "BatchTopK"), ("fp32", "Matryoshka")])
def test_ranks_train_the_same_dictionary_as_one_process(world: int, screen: ScreenName, name: str) -> None:
    losses, weights, silent = trained(0, 1, screen, name)
    assert max(silent) >= 60  # AuxK takes part
    for rank_losses, rank_weights, rank_silent in run_distributed(trained, world, screen, name, world_size=world):
        assert rank_losses == pytest.approx(losses, rel=1e-9)
        assert rank_silent == silent
        for ours, theirs in zip(rank_weights, weights, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-8)


def sae_after(n_steps: int) -> BatchTopK:
    torch.manual_seed(0)
    sae = BatchTopK(10, 60, k=4)
    train(sae, [problem("random", seed=seed).x.detach().float() for seed in range(n_steps)])
    return sae


def test_inference_of_a_token_does_not_depend_on_its_batch() -> None:
    sae = sae_after(3).eval()
    x = problem("random", seed=7).x.detach().float()
    torch.testing.assert_close(sae.encode(x)[5:6], sae.encode(x[5:6]), rtol=0, atol=1e-6)
    assert torch.equal(sae.encode(x) > 0, sae.pre_activations(x) > sae.theta)


def test_training_codes_are_those_of_the_selection() -> None:
    sae = sae_after(1).train()
    x = problem("random", seed=7).x.detach().float()
    z = sae.pre_activations(x).detach()
    torch.testing.assert_close(sae.encode(x), z * largest(z, 4 * 24), rtol=0, atol=1e-5)


def test_a_loaded_dictionary_gives_identical_codes() -> None:
    sae = sae_after(3).eval()
    file = io.BytesIO()
    torch.save(sae.state_dict(), file)
    file.seek(0)
    other = BatchTopK(10, 60, k=4).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    x = problem("random", seed=7).x.detach().float()
    assert torch.equal(other.encode(x), sae.encode(x))


def test_the_running_threshold_has_no_bias_toward_its_start() -> None:
    sae = BatchTopK(10, 60, k=4)
    x = problem("random").x.detach().float()
    sae.objective(x)
    assert sae.theta == pytest.approx(sae.selection(sae.centre(x), sae.w_enc, sae.b_enc, 4 * 24).cut)


def test_an_untrained_dictionary_has_no_threshold() -> None:
    with pytest.raises(UserError, match="threshold"):
        BatchTopK(10, 60).eval().encode(torch.ones(2, 10))


@pytest.mark.parametrize("options", [{"k": 0}, {"k": -3}, {"k": torch.nan}, {"k_aux": -2}, {"dead_after": 0}])
def test_refuses_settings_that_select_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        BatchTopK(10, 60, **options)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_refuses_what_is_not_finite(bad: float) -> None:
    x = torch.ones(4, 10)
    x[2, 3] = bad
    with pytest.raises(UserError, match="1 of 4 tokens"):
        BatchTopK(10, 60).objective(x)


def refusal_of_rank(rank: int) -> str:
    x = torch.ones(4, 10)
    if rank == 1:
        x[2, 3] = torch.nan
    try:
        BatchTopK(10, 60).objective(x)
    except UserError as error:
        return str(error)
    return ""


def test_every_rank_refuses_what_is_not_finite_on_one() -> None:
    assert all("1 of 8 tokens" in message for message in run_distributed(refusal_of_rank))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_the_precision_of_the_weights(dtype: torch.dtype) -> None:
    x = problem("ties").x.detach().to(dtype)
    torch.manual_seed(0)
    sae = BatchTopK(10, 60, k=4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = sae.objective(x).loss
    assert loss.dtype == torch.float32
    assert torch.equal(loss, sae.objective(x.float()).loss)


def test_resumes_bit_for_bit() -> None:
    batches = [problem("random", seed=seed).x.detach().float() for seed in range(6)]
    states = []
    for stops in ([6], [3, 6]):
        torch.manual_seed(0)
        sae, done = BatchTopK(10, 60, k=4, screen="bf16"), 0
        optimizer = DictionaryAdam(sae.parameter_groups())
        for stop in stops:
            if done:  # a new process with what a checkpoint holds
                saved = copy.deepcopy((sae.state_dict(), optimizer.state_dict()))
                sae = BatchTopK(10, 60, k=4, screen="bf16")
                optimizer = DictionaryAdam(sae.parameter_groups())
                sae.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
            for x in batches[done:stop]:
                optimizer.zero_grad()
                sae.objective(x).loss.backward()
                optimizer.step()
            done = stop
        states.append(sae.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)
