"""Tokens are a pure function of seed and image; a model that has not got them is refused by name."""

from collections import Counter

import numpy as np
import pytest
import timm

from impact_lightning.activations.tokens import Sequence, Tokens
from impact_lightning.backbones import check_supported
from impact_lightning.types import UserError

VIT = Sequence("some_vit", length=17, n_prefix=1, has_cls=True)
ROWS = np.array([5, 0, 3_000_000, 5])
MASK = 2**64 - 1


def by_hand(seed: int, image: int, n: int) -> list[int]:
    """Return the n tokens with the smallest SplitMix64 hash, in plain integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    keys = {token: mix(mix(seed + golden + image & MASK) + golden + token & MASK) for token in range(VIT.length)}
    return sorted(sorted(keys, key=lambda token: keys[token])[:n])


@pytest.mark.parametrize(("seed", "n"), [(0, 1), (1, 4), (2**40, 17)])
def test_random_tokens_equal_a_loop_by_hand(seed: int, n: int) -> None:
    assert Tokens("random", n, seed).of(ROWS, VIT).tolist() == [by_hand(seed, int(row), n) for row in ROWS]


@pytest.mark.parametrize(("kind", "expected"), [("all", range(17)), ("cls", [0]), ("patches", range(1, 17))])
def test_other_kinds_are_the_same_for_every_image(kind: str, expected: range) -> None:
    tokens = Tokens(kind)  # type: ignore[arg-type]
    assert tokens.of(ROWS, VIT).tolist() == [list(expected)] * len(ROWS)
    assert tokens.per_image(VIT) == len(expected)


def test_every_token_is_drawn_equally_often() -> None:
    drawn = Counter(Tokens("random", 4).of(np.arange(17_000), VIT).ravel().tolist())
    assert all(abs(drawn[token] - 4000) < 4 * 55 for token in range(17))  # binomial: sigma is 55


def test_another_seed_draws_other_tokens() -> None:
    first, second = (Tokens("random", 4, seed).of(np.arange(50), VIT).tolist() for seed in (0, 1))
    assert first != second


def test_registers_are_neither_class_token_nor_patches() -> None:
    name = "vit_little_patch16_reg4_gap_256"  # four registers, no class token
    sequence = Sequence.of(name, check_supported(timm.create_model(name, depth=1)))
    assert Tokens("patches").of(np.array([0]), sequence).tolist() == [list(range(4, 4 + 256))]
    with pytest.raises(UserError, match=f"{name} has no class token"):
        Tokens("cls").per_image(sequence)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "random"}, r"tokens\.n None and tokens\.kind random"),
        ({"kind": "all", "n": 3}, r"tokens\.n 3 and tokens\.kind all"),
        ({"kind": "random", "n": 0}, r"tokens\.n must be at least 1"),
        ({"seed": -1}, r"tokens\.seed must not be negative"),
    ],
)
def test_refuses_settings_that_contradict_each_other(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tokens(**settings)  # type: ignore[arg-type]


def test_refuses_more_tokens_than_there_are() -> None:
    with pytest.raises(UserError, match="some_vit has only 17 tokens"):
        Tokens("random", 18).per_image(VIT)
