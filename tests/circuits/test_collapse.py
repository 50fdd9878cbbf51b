"""Circuits that collapsed are told from those that had an unlucky step, and go back to where they were good."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from impact_lightning.circuits.collapse import LOST, LastGood, set_back
from impact_lightning.circuits.size import CHEAPEST, Prices

TARGETS, EMPTY = torch.tensor([0.2, 0.2, 0.9]), torch.tensor([0.7, 0.7, 0.5])
GOOD = torch.tensor([0.1, 0.1, 0.1])
BAD = torch.tensor([0.6, 0.1, 0.6])  # the first is beyond half of the way to constants


def kept(n: int = 3) -> LastGood:
    """Return circuits that once reached their targets."""
    good = LastGood(torch.Size((n, 4)))
    good.keep(torch.arange(4.0 * n).view(n, 4), torch.ones(n, dtype=torch.bool))
    return good


def lost(good: LastGood, losses: list[Tensor]) -> list[list[bool]]:
    """Return which circuits are set back after each step."""
    return [good.collapsed(one, TARGETS, EMPTY).tolist() for one in losses]


def test_thresholds_of_circuits_that_reach_their_targets_are_kept() -> None:
    good, first = LastGood(torch.Size((2, 3))), torch.randn(2, 3)
    good.keep(first, torch.tensor([True, False]))
    assert good.is_known.tolist() == [True, False]
    assert torch.equal(good.thresholds[0], first[0])
    assert not good.thresholds[1].any()
    second = torch.randn(2, 3)
    good.keep(second, torch.tensor([False, True]))
    assert good.is_known.tolist() == [True, True]
    assert torch.equal(good.thresholds, torch.stack([first[0], second[1]]))


def test_three_lost_steps_in_a_row_are_a_collapse_and_two_are_none() -> None:
    assert lost(kept(), [BAD] * 2) == [[False] * 3] * 2
    assert lost(kept(), [BAD] * 3)[-1] == [True, False, False]
    assert lost(kept(), [BAD, BAD, GOOD, BAD, BAD]) == [[False] * 3] * 5


def test_after_a_collapse_steps_are_counted_anew() -> None:
    found = [step[0] for step in lost(kept(), [BAD] * 7)]
    assert found == [False, False, True, False, False, True, False]


def test_half_of_the_way_to_constants_is_not_yet_lost() -> None:
    edge = TARGETS + LOST * (EMPTY - TARGETS)
    good = kept()
    assert not any(lost(good, [edge - 1e-6] * 3)[-1][:2])
    assert all(lost(good, [edge + 1e-6] * 3)[-1][:2])


def test_a_circuit_that_was_never_good_has_nothing_to_go_back_to() -> None:
    assert lost(LastGood(torch.Size((3, 4))), [BAD] * 4) == [[False] * 3] * 4


def test_where_constants_reach_the_target_constants_are_no_collapse() -> None:
    assert not any(step[2] for step in lost(kept(), [EMPTY] * 6))


def test_lost_steps_are_in_the_state() -> None:
    one, other = kept(), LastGood(torch.Size((3, 4)))
    lost(one, [BAD, BAD])
    other.load_state_dict(one.state_dict())
    assert lost(one, [BAD]) == lost(other, [BAD]) == [[True, False, False]]


# --------------------------------------------------------------------------------------------------------- set back


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_circuit_is_set_back_without_its_momentum_and_others_keep_theirs(*, amsgrad: bool) -> None:
    thresholds = nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([thresholds], lr=0.1, amsgrad=amsgrad)
    for _ in range(3):
        thresholds.grad = torch.randn(3, 4)
        optimizer.step()
    good, rows = kept(), torch.tensor([False, True, False])
    before: dict[str, Any] = {key: value.clone() for key, value in optimizer.state[thresholds].items()}
    others = thresholds.detach().clone()
    set_back(thresholds, good, rows, optimizer)
    assert torch.equal(thresholds[1], good.thresholds[1])
    assert torch.equal(thresholds[[0, 2]], others[[0, 2]])
    moments = [key for key, value in before.items() if value.shape == thresholds.shape]
    assert len(moments) == 2 + amsgrad
    for key in moments:
        now = optimizer.state[thresholds][key]
        assert not now[1].any()
        assert torch.equal(now[[0, 2]], before[key][[0, 2]])
        assert before[key][1].any()
    assert torch.equal(optimizer.state[thresholds]["step"], before["step"])


def test_a_circuit_can_be_set_back_before_the_first_step() -> None:
    thresholds = nn.Parameter(torch.randn(3, 4))
    good = kept()
    set_back(thresholds, good, torch.tensor([True, False, False]), torch.optim.AdamW([thresholds]))
    assert torch.equal(thresholds[0], good.thresholds[0])


def test_prices_of_what_collapsed_are_halved_and_losses_forgotten() -> None:
    prices = Prices(3, None, start=1e-3)
    prices.move(torch.ones(3), torch.ones(3), torch.zeros(3), progress=0.0)
    prices.halve(torch.tensor([True, False, True]))
    assert prices().tolist() == pytest.approx([5e-4, 1e-3, 5e-4])
    assert prices.mean_loss.isnan().tolist() == [True, False, True]


def test_prices_are_halved_down_to_the_cheapest() -> None:
    prices = Prices(1, None, start=1e-5)
    for _ in range(20):
        prices.halve(torch.tensor([True]))
    assert float(prices.log_price) == pytest.approx(math.log(CHEAPEST))
