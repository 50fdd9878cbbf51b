"""SaCo compares all pairs of groups."""

import numpy as np
import pytest
import torch

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


def test_drops_are_taken_from_the_score_of_the_image() -> None:
    groups = curve([[0.1, 0.8, 0.4]], "none", name="groups", clean=0.9)._replace(mass=torch.tensor([[3.0, 2.0, 1.0]]))
    assert saco(groups).item() == saco_of(groups.mass, torch.tensor([[0.8, 0.1, 0.5]])).item() == 0.5
    with pytest.raises(UserError, match="groups"):
        saco(curve([[1.0, 0.5]], "rise"))
