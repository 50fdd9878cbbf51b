"""A folded dictionary gives from raw activations what the trained one gives from normalised ones."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from impact_lightning.sae.folded import FoldedSAE, fold_decoder_norms, fold_normalisation
from impact_lightning.types import UserError
from tests.sae.dictionaries import ALL, D_IN, D_OUT, LATENTS, dictionary, inputs


def by_hand(sae: FoldedSAE, x: Tensor) -> list[float]:
    """Return the codes of one activation `(D,)`, from the definitions."""
    centred = x - sae.b_dec if sae.centred else x
    p = [float(row @ centred) for row in sae.w_enc]
    z = [a + float(b) for a, b in zip(p, sae.b_enc, strict=True)]
    if sae.threshold is not None:
        return [a if a > float(t) else 0.0 for a, t in zip(z, sae.threshold, strict=True)]
    if sae.k is not None:
        largest = sorted(range(len(z)), key=lambda j: -z[j])[: sae.k]
        return [max(a, 0.0) if j in largest else 0.0 for j, a in enumerate(z)]
    if sae.r_mag is not None and sae.b_mag is not None:
        magnitude = [math.exp(r) * a + b for a, r, b in zip(p, sae.r_mag.tolist(), sae.b_mag.tolist(), strict=True)]
        return [max(m, 0.0) if a > 0 else 0.0 for a, m in zip(z, magnitude, strict=True)]
    return [max(a, 0.0) for a in z]


@pytest.mark.parametrize("name", ALL)
def test_codes_follow_their_definition(name: str) -> None:
    sae = dictionary(name)
    for x in inputs(5):
        assert sae.encode(x[None])[0].tolist() == pytest.approx(by_hand(sae, x), abs=1e-5)


def test_a_pre_activation_on_the_threshold_is_off() -> None:
    one = torch.ones(1, 1)
    sae = FoldedSAE("jumprelu", one, torch.zeros(1), one, torch.zeros(1), threshold=torch.tensor([0.5]))
    assert sae.encode(torch.tensor([[0.25], [0.5], [0.75]])).tolist() == [[0.0], [0.0], [0.75]]


@pytest.mark.parametrize("name", ALL)
def test_folding_the_normalisation_changes_nothing(name: str) -> None:
    trained = dictionary(name)
    mean, mean_out = torch.arange(D_IN) - 1.0, torch.arange(D_OUT) + 2.0
    if trained.is_transcoder:
        folded = fold_normalisation(trained, 0.5, mean, scale_out=4.0, mean_out=mean_out)
        scale_out = 4.0
    else:
        folded, scale_out, mean_out = fold_normalisation(trained, 0.5, mean), 0.5, mean
    raw = inputs() * 2 + mean
    normalised = 0.5 * (raw - mean)
    codes = trained.encode(normalised)
    torch.testing.assert_close(folded.encode(raw), codes, atol=1e-5, rtol=1e-5)
    expected = trained.decode(codes, normalised) / scale_out + mean_out
    torch.testing.assert_close(folded.decode(codes, raw), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in ALL if name != "topk"])
def test_folding_decoder_norms_changes_no_output(name: str) -> None:
    sae, x = dictionary(name), inputs()
    folded = fold_decoder_norms(sae)
    norms = sae.w_dec.norm(dim=1)
    torch.testing.assert_close(folded.w_dec.norm(dim=1), torch.ones(LATENTS))
    torch.testing.assert_close(folded.encode(x), sae.encode(x) * norms, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(folded.decode(folded.encode(x), x), sae.decode(sae.encode(x), x), atol=1e-5, rtol=1e-5)


def test_refuses_to_fold_norms_that_would_change_what_topk_selects() -> None:
    with pytest.raises(UserError, match="TopK selects by size"):
        fold_decoder_norms(dictionary("topk"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "lasso"}, "'lasso' is none of"),
        ({"threshold": None}, "needs .*threshold"),
        ({"k": 3}, "has .*k"),
        ({"b_enc": torch.zeros(3)}, r"b_enc: its shape is \(3,\)"),
        ({"threshold": torch.full((LATENTS,), -1.0)}, "threshold: some are below 0"),
        ({"w_dec": torch.full((LATENTS, D_IN), math.nan)}, "w_dec: not all"),
        ({"w_skip": torch.zeros(D_IN, D_IN)}, "w_skip: only a transcoder"),
        ({"is_transcoder": True}, "centred: the bias"),
    ],
)
def test_refuses_parts_that_do_not_fit(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(dictionary("jumprelu"), **change)  # type: ignore[arg-type]  # wrong on purpose


def test_a_skip_connection_needs_its_input() -> None:
    with pytest.raises(UserError, match="needs its input"):
        dictionary("skip_transcoder").decode(torch.zeros(1, LATENTS))
