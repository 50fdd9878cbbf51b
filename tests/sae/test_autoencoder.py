"""Every variant has one interface, as an autoencoder and as a transcoder."""

import pytest
import torch

from impact_lightning.sae import SAE, BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK
from impact_lightning.sae.optimizer import DictionaryAdam
from impact_lightning.types import UserError

VARIANTS: list[type[SAE]] = [BatchTopK, Matryoshka, TopK, ReLU, JumpReLU, Gated]


def sample(width: int = 12, n: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def train(sae: SAE, x: torch.Tensor, target: torch.Tensor | None, n_steps: int) -> list[float]:
    optimizer, losses = DictionaryAdam(sae.parameter_groups(), lr=0.01), []
    for _ in range(n_steps):
        optimizer.zero_grad()
        made = sae.objective(x, target)
        made.loss.backward()
        optimizer.step()
        losses.append(made.reconstruction.item())
    return losses


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_reconstructs_better(variant: type[SAE]) -> None:
    torch.manual_seed(0)
    losses = train(variant(12, 32), sample(), None, 30)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_learns_a_target_of_another_width(variant: type[SAE], skip: bool) -> None:
    torch.manual_seed(0)
    x = sample()
    target = x @ sample(12, 5, seed=1).T
    sae = variant(12, 32, d_out=5, skip=skip)
    losses = train(sae, x, target, 30)
    assert losses[-1] < 0.8 * losses[0]
    assert sae.eval()(x).shape == (40, 5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bias_of_a_transcoder_is_not_taken_off_its_input(variant: type[SAE]) -> None:
    sae = variant(12, 32, d_out=12)
    z = sae.pre_activations(sample())
    torch.nn.init.ones_(sae.b_dec)
    assert torch.equal(sae.pre_activations(sample()), z)


@pytest.mark.parametrize("variant", VARIANTS)
def test_leading_dimensions_are_kept(variant: type[SAE]) -> None:
    sae = variant(12, 32)
    train(sae, sample(), None, 1)
    x = sample().view(2, 5, 4, 12)
    for mode in (True, False):
        codes = sae.train(mode).encode(x)
        assert codes.shape == (2, 5, 4, 32)
        torch.testing.assert_close(codes.view(40, 32), sae.encode(x.view(40, 12)))
        assert sae(x).shape == (2, 5, 4, 12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_output_of_the_objective_is_the_decoded_code(variant: type[SAE]) -> None:
    torch.manual_seed(0)
    sae, x = variant(12, 32), sample()
    made = sae.objective(x)
    codes = sae.train().encode(x)
    torch.testing.assert_close(made.output, sae.decode(codes, x).detach())
    assert torch.equal(made.counts, (codes > 0).sum(0))
    torch.testing.assert_close(made.l0, (codes > 0).sum() / 40)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dead_latents_are_counted(variant: type[SAE]) -> None:
    sae = variant(12, 32, dead_after=80)
    with torch.no_grad():
        sae.b_enc[3] = -1e3
    train(sae, sample(), None, 2)
    assert sae.dead.silent[3] == 80
    assert 3 in sae.dead.indices()


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_the_decoder_begin_with_unit_length_and_as_the_encoder(variant: type[SAE]) -> None:
    sae = variant(12, 32)
    torch.testing.assert_close(sae.w_dec.norm(dim=1), torch.ones(32))
    assert torch.equal(sae.w_dec, sae.w_enc)
    assert sae.w_dec.data_ptr() != sae.w_enc.data_ptr()


def test_refuses_a_target_for_an_autoencoder_and_none_for_a_transcoder() -> None:
    for sae, target in ((TopK(12, 32), sample()), (TopK(12, 32, d_out=5), None)):
        with pytest.raises(UserError, match="target"):
            sae.objective(sample(), target)


def test_refuses_a_skip_connection_without_a_target() -> None:
    with pytest.raises(UserError, match="skip"):
        TopK(12, 32, skip=True)


def test_refuses_to_decode_a_skip_connection_without_an_input() -> None:
    with pytest.raises(UserError, match="input"):
        TopK(12, 32, d_out=12, skip=True).decode(torch.zeros(1, 32))
