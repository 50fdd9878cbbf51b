"""Decoder geometry finds features that are alike, and states what random ones would give."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from impact_lightning.metrics import decoder_geometry
from impact_lightning.metrics.decoder_geometry import expected_max_cosine, max_cosine, mmcs, pw_mcc, random_decoder
from impact_lightning.types import UserError


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double()) / math.sqrt(float(a.double() @ a.double()) * float(b.double() @ b.double()))


def scaled(n: int, seed: int) -> Tensor:
    return random_decoder(n, 5, seed=seed) * torch.arange(1.0, n + 1)[:, None]


def test_max_cosine_equals_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_geometry, "ROWS", 3)  # 8 rows: two whole blocks and a part
    decoder = scaled(8, 0)
    expected = [max(cosine(a, b) for j, b in enumerate(decoder) if j != i) for i, a in enumerate(decoder)]
    assert max_cosine(decoder).tolist() == pytest.approx(expected, abs=1e-6)


def test_mmcs_equals_a_loop() -> None:
    a, b = scaled(6, 0), scaled(9, 1)
    expected = sum(max(cosine(row, other) for other in b) for row in a) / 6
    assert mmcs(a, b).item() == pytest.approx(expected, abs=1e-6)


def test_pw_mcc_is_the_best_of_all_matchings() -> None:
    a, b = scaled(5, 0), scaled(5, 1)
    matchings = (sum(cosine(a[i], b[j]) for i, j in enumerate(order)) / 5 for order in permutations(range(5)))
    assert pw_mcc(a, b).item() == pytest.approx(max(matchings), abs=1e-6)


def test_reordered_and_scaled_features_are_the_same_features() -> None:
    decoder = scaled(7, 0)
    other = 3.0 * decoder.flip(0)
    assert mmcs(decoder, other).item() == pytest.approx(1.0, abs=1e-6)
    assert pw_mcc(decoder, other).item() == pytest.approx(1.0, abs=1e-6)


def test_two_copies_of_a_feature_cannot_share_a_partner() -> None:
    a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    assert mmcs(a, b).item() == 1.0
    assert pw_mcc(a, b).item() == 0.5


def test_the_expected_max_cosine_is_near_that_of_random_directions() -> None:
    sampled = max_cosine(random_decoder(1024, 128)).mean().item()
    assert sampled == pytest.approx(0.28, abs=0.01)
    assert sampled == pytest.approx(expected_max_cosine(1024, 128), rel=0.2)  # the formula is an upper estimate


def test_random_decoders_follow_their_seed() -> None:
    assert random_decoder(3, 4, seed=1).equal(random_decoder(3, 4, seed=1))
    assert not random_decoder(3, 4, seed=1).equal(random_decoder(3, 4, seed=2))


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_refuses_a_row_without_direction(value: float) -> None:
    decoder = scaled(4, 0)
    decoder[2] = value
    with pytest.raises(UserError, match="row 2"):
        max_cosine(decoder)


def test_refuses_decoders_that_do_not_compare() -> None:
    with pytest.raises(UserError, match="widths 5 and 6"):
        mmcs(scaled(4, 0), torch.ones(4, 6))
    with pytest.raises(UserError, match="1 latents"):
        max_cosine(torch.ones(1, 5))
