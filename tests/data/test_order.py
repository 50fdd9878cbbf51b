"""Orders cover every sample once, and are pure functions of seed, epoch and step."""

import numpy as np
import pytest

from impact_lightning.data.order import EvalOrder, TrainOrder
from impact_lightning.types import UserError


def epoch_of(order: TrainOrder, epoch: int) -> list[int]:
    return [int(row) for step in range(len(order)) for row in order.rows_at(epoch, step)]


def test_an_epoch_covers_every_row_once_but_for_less_than_a_batch() -> None:
    rows = epoch_of(TrainOrder(rows=23, batch=5), 3)
    assert len(rows) == len(set(rows)) == 20
    assert set(rows) < set(range(23))


def test_epochs_and_seeds_have_other_orders() -> None:
    orders = [epoch_of(TrainOrder(20, 5, seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == epoch_of(TrainOrder(20, 5, 0), 0)


def test_steps_may_be_asked_for_in_any_order() -> None:
    forwards, backwards = TrainOrder(20, 5), TrainOrder(20, 5)
    rows = {(epoch, step): forwards.rows_at(epoch, step) for epoch in range(3) for step in range(4)}
    for (epoch, step), expected in reversed(rows.items()):
        assert backwards.rows_at(epoch, step).tolist() == expected.tolist()


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (8, 2), (9, 3)])
def test_evaluation_covers_all_rows_in_their_order(rows: int, steps: int) -> None:
    order = EvalOrder(rows, batch=4)
    assert len(order) == steps
    assert np.concatenate([order.rows_at(step) for step in range(steps)]).tolist() == list(range(rows))


@pytest.mark.parametrize("batch", [0, 21])
def test_refuses_a_batch_that_the_data_cannot_fill(batch: int) -> None:
    with pytest.raises(UserError, match=f"batch_size {batch} must lie between 1 and the 20 samples"):
        TrainOrder(20, batch)
