"""Schedules are pure functions of the step, with the values that they promise at their ends."""

import pytest

from impact_lightning.sae.schedule import Schedule
from impact_lightning.types import UserError


def test_the_learning_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(warmup_steps=4, decay=0.2)
    rates = [schedule.learning_rate(step, 20) for step in range(21)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[16:] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_k_goes_linearly_to_its_value_and_stays() -> None:
    schedule = Schedule(k_start=4, k_share=0.5)
    assert [schedule.k(step, 20) for step in (0, 5, 10, 19)] == [4.0, 2.5, 1.0, 1.0]
    assert Schedule().k(0, 20) == 1


def test_the_penalty_rises_from_zero() -> None:
    schedule = Schedule(penalty_share=0.5)
    assert [schedule.penalty(step, 20) for step in (0, 5, 10, 19)] == [0.0, 0.5, 1.0, 1.0]
    assert Schedule(penalty_share=0).penalty(0, 20) == 1


@pytest.mark.parametrize("wrong", [{"decay": 1.5}, {"k_share": -1.0}, {"k_start": 0.0}, {"warmup_steps": -1}])
def test_refuses_what_is_no_schedule(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="schedule"):
        Schedule(**wrong)  # type: ignore[arg-type]  # a share where a whole number is due is caught by the parser
