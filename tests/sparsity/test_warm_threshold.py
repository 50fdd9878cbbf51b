"""The warm threshold is that of a full sort, whatever came before."""

import pytest
import torch
from torch import Tensor

from impact_lightning.sparsity import warm_threshold
from impact_lightning.sparsity.compare import kth_largest
from impact_lightning.sparsity.warm_threshold import Cut, WarmThreshold


def brute_force(scores: Tensor, k: int) -> Cut:
    ordered = sorted(scores.tolist(), reverse=True)
    threshold = ordered[k - 1]
    return Cut(threshold, sum(value >= threshold for value in ordered) - k)


@pytest.mark.parametrize("k", [1, 2, 17, 500, 999, 1000])
def test_it_follows_numbers_that_move(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    warm, scores = WarmThreshold(), torch.rand(1000, generator=generator)
    for step in range(40):
        scores = (scores + 10 ** -(step % 5) * torch.randn(1000, generator=generator)).abs()
        assert warm.find(scores, k) == brute_force(scores, k)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties_are_counted(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    warm = WarmThreshold()
    for k in (1, 30, 31, 70, 100):
        scores = torch.randint(levels, (100,), generator=generator).float()
        assert warm.find(scores, k) == brute_force(scores, k)


def test_infinite_scores_come_first_and_are_forgotten() -> None:
    warm, scores = WarmThreshold(), torch.tensor([1.0, 5.0, 3.0, torch.inf, torch.inf])
    assert warm.find(scores, 2) == Cut(torch.inf, 0)
    assert warm.find(scores, 3) == Cut(5.0, 0)
    assert warm.find(scores, 4) == Cut(3.0, 0)


def test_a_jump_of_everything_is_followed() -> None:
    warm, scores = WarmThreshold(), torch.arange(1.0, 101.0)
    for scale in (1.0, 1e-6, 1e6, 0.0, 1.0):
        assert warm.find(scores * scale, 10) == brute_force(scores * scale, 10)


def test_few_numbers_are_ordered_once_it_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(x: Tensor, k: int) -> float:
        sizes.append(len(x))
        return kth_largest(x, k)

    monkeypatch.setattr(warm_threshold, "kth_largest", counted)
    generator = torch.Generator().manual_seed(0)
    warm, scores = WarmThreshold(), torch.rand(10_000, generator=generator)
    for _ in range(20):
        scores = scores + 1e-4 * torch.randn(10_000, generator=generator)
        warm.find(scores, 1000)
    assert max(sizes[2:]) < 500
