"""JumpReLU's thresholds are trained through a window around them."""

import pytest
import torch

from impact_lightning.ranks import rank_and_world
from impact_lightning.sae.jump_relu import JumpReLU
from impact_lightning.sae.optimizer import DictionaryAdam
from tests.distributed import run_distributed
from tests.sae.oracle import gradients, problem
from tests.sae.test_batch_topk import load


def dictionary(**options: float | bool | None) -> JumpReLU:
    sae = JumpReLU(10, 60, initial_threshold=0.4, bandwidth=0.5, **options).double()  # type: ignore[arg-type]
    load(sae, problem("random"))
    torch.nn.init.constant_(sae.theta, 0.4)  # float64's 0.4
    return sae


@pytest.mark.parametrize("through_encoder", [False, True])
@pytest.mark.parametrize("target_l0", [None, 8.0])
def test_gradients_equal_the_straight_through_formulas(through_encoder: bool, target_l0: float | None) -> None:
    x = problem("random").x.detach()
    sae = dictionary(sparsity_weight=0.3, target_l0=target_l0, through_encoder=through_encoder)
    made = sae.objective(x)
    z = ((x - sae.b_dec) @ sae.w_enc.T + sae.b_enc).detach()
    active = (z > 0.4).double()
    l0 = active.sum(1).mean()
    penalty = 0.3 * l0 if target_l0 is None else 0.3 * (l0 / target_l0 - 1) ** 2
    error = (z * active) @ sae.w_dec + sae.b_dec - x
    torch.testing.assert_close(made.loss, error.square().sum(1).mean() + penalty, rtol=0, atol=1e-10)

    near = ((z - 0.4).abs() < 0.25).double()
    d_codes = (2 * error @ sae.w_dec.T / len(x)).detach()
    d_l0 = 0.3 if target_l0 is None else 0.3 * 2 * (float(l0) / target_l0 - 1) / target_l0
    d_theta = -(d_codes * (0.4 / 0.5) * near).sum(0) - d_l0 / 0.5 * near.sum(0) / len(x)
    d_z = d_codes * active + (d_codes * (0.4 / 0.5) * near if through_encoder else 0)
    theta, bias = gradients(made.loss, (sae.theta, sae.b_enc))
    torch.testing.assert_close(theta, d_theta, rtol=0, atol=1e-10)
    torch.testing.assert_close(bias, d_z.sum(0), rtol=0, atol=1e-10)


def test_thresholds_stay_at_zero_or_above() -> None:
    x = problem("random").x.detach()
    sae = JumpReLU(10, 60, initial_threshold=1e-4, bandwidth=3.0, target_l0=50.0).double()
    optimizer = DictionaryAdam(sae.parameter_groups(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sae.objective(x).loss.backward()
        optimizer.step()
    assert float(sae.theta.detach().min()) == 0


def test_every_parameter_is_in_one_group() -> None:
    sae = JumpReLU(4, 8)
    grouped = [id(weight) for group in sae.parameter_groups() for weight in group["params"]]
    assert sorted(grouped) == sorted(id(weight) for weight in sae.parameters())


def gradient_of_rank(rank: int) -> tuple[float, list[float]]:
    _, world = rank_and_world()
    sae = dictionary(target_l0=8.0)
    made = sae.objective(problem("random").x.detach()[rank::world])
    return made.loss.item(), gradients(made.loss, (sae.theta,))[0].tolist()


def test_two_ranks_average_to_one() -> None:
    loss, theta = gradient_of_rank(0)
    (a, theta_a), (b, theta_b) = run_distributed(gradient_of_rank)
    assert (a + b) / 2 == pytest.approx(loss)
    assert [(p + q) / 2 for p, q in zip(theta_a, theta_b, strict=True)] == pytest.approx(theta)
