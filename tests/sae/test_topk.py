"""TopK keeps the k largest positive codes of every token, with the gradients of the dense definition."""

import copy

import pytest
import torch
from torch import Tensor

from impact_lightning.sae import topk
from impact_lightning.sae.optimizer import DictionaryAdam
from impact_lightning.sae.topk import TopK, largest_of_row
from impact_lightning.types import UserError
from tests.sae.oracle import CASES, assert_all_close, gradients, largest, problem
from tests.sae.test_batch_topk import load


def by_row(z: Tensor, k: int) -> Tensor:
    return torch.cat([largest(row[None], k) for row in z])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 7, 59, 60, 100])
def test_mask_equals_a_stable_sort_of_each_row(case: str, k: int) -> None:
    z = problem(case).pre_activations().detach()
    assert torch.equal(largest_of_row(z, k), by_row(z, k))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("height", [1, 5, 100])
def test_loss_and_gradients_equal_dense_autograd(case: str, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "TILE", 60 * height)
    task = problem(case)
    sae = TopK(10, 60, k=4).double()
    load(sae, task)
    made = sae.objective(task.x)
    z = (task.x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    codes = z * by_row(z, 4)
    theirs = (codes @ sae.w_dec + sae.b_dec - task.x).square().sum(1).mean()
    leaves = (task.x, *sae.parameters())
    assert_all_close(gradients(made.loss, leaves), gradients(theirs, leaves))
    torch.testing.assert_close(made.l0, (codes != 0).sum() / 24, check_dtype=False)


def test_codes_of_training_and_inference_agree() -> None:
    sae, x = TopK(10, 60, k=4), torch.randn(9, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae.train().encode(x), sae.eval().encode(x))


def test_two_micro_batches_equal_one_batch() -> None:
    x = problem("random").x.detach()
    torch.manual_seed(0)
    whole = TopK(10, 60, k=4).double()
    parts = copy.deepcopy(whole)
    for sae, batches in ((whole, [x]), (parts, [x[:12], x[12:]])):
        sae.take_shortcuts()
        optimizer = DictionaryAdam(sae.parameter_groups())
        for batch in batches:
            (sae.objective(batch).loss / len(batches)).backward()
        optimizer.step()
    assert_all_close([*whole.parameters()], [*parts.parameters()], tolerance=1e-8)


@pytest.mark.parametrize("k", [0, 2.5])
def test_refuses_a_broken_number_of_latents(k: float) -> None:
    with pytest.raises(UserError, match="k: "):
        TopK(10, 60, k=k)  # type: ignore[arg-type]
