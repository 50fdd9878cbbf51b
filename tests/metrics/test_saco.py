"""SaCo compares all pairs of groups."""

import numpy as np
import pytest
import torch

from impact_lightning.metrics.curves import Curves
from impact_lightning.metrics.saco import saco, saco_of
from impact_lightning.types import UserError
from tests.metrics.test_area import curve


def by_hand(relevance: np.ndarray, drops: np.ndarray) -> float:
    total = weight = 0.0
    for i in range(len(relevance)):
        for j in range(i + 1, len(relevance)):
            difference = relevance[i] - relevance[j]
            total += difference if drops[i] >= drops[j] else -difference
            weight += abs(difference)
    return total / weight


def test_equals_a_loop_over_pairs() -> None:
    random = np.random.default_rng(0)
    relevance, drops = -np.sort(-random.normal(size=(4, 10))), random.normal(size=(4, 10))
    found = saco_of(torch.from_numpy(relevance), torch.from_numpy(drops))
    np.testing.assert_allclose(found, [by_hand(*pair) for pair in zip(relevance, drops, strict=True)])


def test_it_is_one_where_drops_descend_and_minus_one_where_they_ascend() -> None:
    relevance = torch.tensor([[4.0, 2.0, 1.0]])
    assert saco_of(relevance, torch.tensor([[0.9, 0.5, 0.1]])).item() == 1
    assert saco_of(relevance, torch.tensor([[0.1, 0.5, 0.9]])).item() == -1


def test_equal_relevance_says_nothing() -> None:
    assert saco_of(torch.ones(1, 3), torch.rand(1, 3)).isnan().all()
    assert saco_of(torch.zeros(1, 3), torch.rand(1, 3)).isnan().all()
    relevance = 0.1 * (1 + 1e-7 * torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64))  # as upsampling rounds it
    assert saco_of(relevance, torch.rand(1, 3)).isnan().all()


SIZES = (4, 4, 5)  # of groups of 13 units


def of_units(relevance: np.ndarray, scores: np.ndarray) -> Curves:
    """Return the curve of groups of units in descending order `(B, 13)`, as an engine sums and draws it."""
    ends = np.cumsum(SIZES)
    sums = np.stack([part.sum(1) for part in np.split(relevance, ends[:-1], axis=1)], axis=1)
    drawn = curve(scores.tolist(), "none", name="groups", clean=0.9, fractions=[size / 13 for size in SIZES])
    return drawn._replace(mass=torch.from_numpy(sums))


def test_groups_of_other_sizes_are_compared_by_their_means() -> None:
    random = np.random.default_rng(1)
    relevance, scores = -np.sort(-random.normal(size=(6, 13)), axis=1), random.random((6, 3))
    found = saco(of_units(relevance, scores))
    means = [[units[:4].mean(), units[4:8].mean(), units[8:].mean()] for units in relevance]
    wanted = [by_hand(np.array(own), 0.9 - y) for own, y in zip(means, scores, strict=True)]
    np.testing.assert_allclose(found, wanted)
    np.testing.assert_allclose(saco(of_units(relevance + 5, scores)), found, rtol=0, atol=1e-9)
    np.testing.assert_allclose(saco(of_units(relevance - 5, scores)), found, rtol=0, atol=1e-9)


def test_a_constant_map_says_nothing_whatever_the_sizes_of_its_groups() -> None:
    assert saco(of_units(np.full((2, 13), 0.1), np.random.default_rng(2).random((2, 3)))).isnan().all()


def test_drops_are_taken_from_the_score_of_the_image() -> None:
    groups = curve([[0.1, 0.8, 0.4]], "none", name="groups", clean=0.9, fractions=[1 / 3] * 3)
    groups = groups._replace(mass=torch.tensor([[3.0, 2.0, 1.0]]))
    assert saco(groups).item() == saco_of(groups.mass, torch.tensor([[0.8, 0.1, 0.5]])).item() == 0.5
    with pytest.raises(UserError, match="groups"):
        saco(curve([[1.0, 0.5]], "rise"))
