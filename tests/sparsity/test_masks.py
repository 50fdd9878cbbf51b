"""Masks have exact counts, remove the lowest scores, and of equal ones the first."""

import pytest
import torch
from torch import Tensor

from impact_lightning.sparsity.masks import (
    NofM,
    global_masks,
    keep_highest,
    n_of_m_mask,
    n_zeros,
    parse_scope,
    row_mask,
    tensor_mask,
)
from impact_lightning.types import UserError


def oracle(scores: Tensor, zeros: int) -> Tensor:
    """Sort everything, the first of equal ones first."""
    mask = torch.ones_like(scores, dtype=torch.bool)
    for row, kept in zip(scores.reshape(-1, scores.shape[-1]), mask.view(-1, scores.shape[-1]), strict=True):
        order = sorted(range(len(row)), key=lambda j: (float(row[j]), j))
        kept[order[:zeros]] = False
    return mask


def random_scores(*shape: int, ties: bool) -> Tensor:
    scores = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))
    return (scores * 4).floor() if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", [(7, 13), (1, 1), (5, 3, 4), (16, 24), (31,)])
def test_the_lowest_go_and_of_equal_ones_the_first(shape: tuple[int, ...], ties: bool) -> None:
    scores = random_scores(*shape, ties=ties)
    for zeros in range(shape[-1]):
        assert torch.equal(keep_highest(scores, zeros), oracle(scores, zeros))


def test_equal_scores_everywhere_go_from_the_left() -> None:
    assert row_mask(torch.zeros(2, 5), 0.5).tolist() == [[False, False, True, True, True]] * 2


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_counts_are_floors_in_every_scope(sparsity: float, ties: bool) -> None:
    scores = random_scores(9, 29, ties=ties)
    assert (~row_mask(scores, sparsity)).sum(1).tolist() == [n_zeros(sparsity, 29)] * 9
    assert int((~tensor_mask(scores, sparsity)).sum()) == n_zeros(sparsity, 9 * 29)
    several = {"a": scores, "b": random_scores(5, 7, ties=ties) / 2}
    masks = global_masks(several, sparsity)
    assert sum(int((~mask).sum()) for mask in masks.values()) == n_zeros(sparsity, 9 * 29 + 35)
    flat = torch.cat([part.flatten() for part in several.values()])
    assert torch.equal(
        torch.cat([mask.flatten() for mask in masks.values()]), oracle(flat, n_zeros(sparsity, len(flat)))
    )


def test_a_share_is_the_decimal_that_was_written() -> None:
    numbers = {(0.29, 100): 29, (0.7, 10): 7, (0.1, 768): 76, (0.7, 768): 537, (0.7, 3072): 2150, (1e-3, 1000): 1}
    assert {(s, n): n_zeros(s, n) for s, n in numbers} == numbers


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8), (3, 4), (1, 3)])
def test_every_group_keeps_its_n_highest(keep: int, of: int, ties: bool) -> None:
    scores = random_scores(6, 24, ties=ties)
    mask = n_of_m_mask(scores, NofM(keep, of))
    groups = scores.reshape(-1, of)
    assert torch.equal(mask.reshape(-1, of), oracle(groups, of - keep))
    assert set(mask.reshape(-1, of).sum(1).tolist()) == {keep}


def test_scopes_are_read_and_others_refused() -> None:
    assert [parse_scope(text) for text in ("row", "tensor", "global", "2:4")] == ["row", "tensor", "global", NofM(2, 4)]
    for wrong in ("layer", "4:2", "0:4", "4:4", "2:", ""):
        with pytest.raises(UserError, match="choose row, tensor, global, or N:M"):
            parse_scope(wrong)
