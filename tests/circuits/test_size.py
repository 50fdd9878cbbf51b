"""Prices move towards their targets, and the search finds the sizes that reach them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.size import Prices, Target, ranking, smallest_circuits
from impact_lightning.types import UserError


def moved(loss: float, target: float = 1.0, full: float = 0.5, *, progress: float = 0.5, start: float = 1e-5) -> float:
    """Return the logarithm of what the price is multiplied by in the first step."""
    prices = Prices(1, None, start)
    prices.move(torch.tensor([loss]), torch.tensor([target]), torch.tensor([full]), progress=progress)
    return math.log(float(prices()) / start)


# --------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(), [0.2 + 0.1 * 0.5, 1.0 - 0.1 * 0.4]),
        (Target("relative", 0.5), [0.45, 0.8]),
        (Target("above", 0.25), [0.45, 1.25]),
        (Target("absolute", 0.15), [0.15, 0.15]),
    ],
)
def test_targets_are_those_of_their_definition(target: Target, expected: list[float]) -> None:
    found = target.of(torch.tensor([0.2, 1.0]), torch.tensor([0.7, 0.6]))  # constants can do better than the model
    torch.testing.assert_close(found, torch.tensor(expected))


# ---------------------------------------------------------------------------------------------------------- prices


def test_a_price_rises_where_the_loss_is_below_its_target() -> None:
    assert moved(0.75) == pytest.approx(0.02 * (1 - 0.75) / 0.5)


def test_a_price_falls_where_the_loss_is_above_its_target() -> None:
    assert moved(1.25) == pytest.approx(-0.02 * 0.25 / 0.5)


def test_a_price_stays_where_the_loss_is_its_target() -> None:
    assert moved(1.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("loss", "expected"), [(100.0, -0.02), (-100.0, 0.02)])
def test_a_price_moves_by_at_most_its_rate(loss: float, expected: float) -> None:
    assert moved(loss) == pytest.approx(expected)


def test_a_target_below_the_loss_of_the_whole_model_has_the_smallest_scale() -> None:
    assert moved(0.1005, target=0.1, full=0.5) == pytest.approx(-0.02 * 0.0005 / 1e-3, rel=1e-4)


@pytest.mark.parametrize(
    ("progress", "moves"), [(0.0, False), (0.049, False), (0.05, True), (0.89, True), (0.9, False)]
)
def test_prices_stand_still_at_the_beginning_and_at_the_end(progress: float, *, moves: bool) -> None:
    assert (moved(0.5, progress=progress) > 1e-3) == moves


def test_losses_are_averaged_also_while_prices_stand_still() -> None:
    prices = Prices(1, None)
    for loss in (1.0, 3.0, 2.0):
        prices.move(torch.tensor([loss]), torch.tensor([1.0]), torch.tensor([0.0]), progress=0.0)
    assert float(prices.mean_loss) == pytest.approx(0.95 * (0.95 * 1 + 0.05 * 3) + 0.05 * 2)


def test_prices_move_each_on_its_own() -> None:
    prices = Prices(2, None)
    prices.move(torch.tensor([0.5, 1.5]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]), progress=0.5)
    assert (prices().log() - math.log(1e-5)).tolist() == pytest.approx([0.01, -0.01])


def test_prices_stay_within_their_bounds() -> None:
    low, high = Prices(1, None, start=1.01e-8), Prices(1, None, start=0.99e-1)
    for _ in range(5):
        low.move(torch.tensor([9.0]), torch.tensor([1.0]), torch.tensor([0.5]), progress=0.5)
        high.move(torch.tensor([-9.0]), torch.tensor([1.0]), torch.tensor([0.5]), progress=0.5)
    assert float(low()) == pytest.approx(1e-8)
    assert float(high()) == pytest.approx(1e-1)


@pytest.mark.parametrize("price", [0.0, 8e-5])
def test_a_fixed_price_never_moves(price: float) -> None:
    prices = Prices(2, price)
    prices.move(torch.zeros(2), torch.ones(2), torch.zeros(2), progress=0.5)
    assert prices().tolist() == pytest.approx([price, price])


@pytest.mark.parametrize("price", [-1e-9, math.inf, math.nan])
def test_a_price_that_is_none_is_refused(price: float) -> None:
    with pytest.raises(UserError, match=r"model\.learning\.penalty"):
        Prices(1, price)


def test_prices_and_averages_are_in_the_state() -> None:
    prices, other = Prices(1, None), Prices(1, None)
    prices.move(torch.tensor([0.5]), torch.tensor([1.0]), torch.tensor([0.0]), progress=0.5)
    other.load_state_dict(prices.state_dict())
    for each in (prices, other):
        each.move(torch.tensor([0.7]), torch.tensor([1.0]), torch.tensor([0.0]), progress=0.5)
    assert torch.equal(prices(), other())


# --------------------------------------------------------------------------------------------------------- ranking


def test_ranking_is_by_descending_scores_and_ties_go_to_the_lower_index() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.5, -1.0, 0.5], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert ranking(scores).tolist() == [[3, 0, 1, 4, 2], [0, 1, 2, 3, 4]]


def test_masks_of_all_sizes_are_nested_and_exact() -> None:
    place = ranking(torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).round(decimals=1))
    for k in range(51):
        assert (place < k).sum(1).tolist() == [k] * 3


# ---------------------------------------------------------------------------------------------------------- search


def by_size(of: Callable[[int], float]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda _, sizes: torch.tensor([of(int(size)) for size in sizes], dtype=torch.float64)


@pytest.mark.parametrize("true", [0, 1, 2, 3, 5, 37, 64, 99, 100])
def test_the_smallest_size_of_a_monotone_loss_is_found(true: int) -> None:
    found = smallest_circuits(by_size(lambda k: 0.0 if k >= true else 1.0), 100, torch.tensor([0.5]))
    assert found.smallest.tolist() == found.safe.tolist() == [true]


def test_a_large_gap_of_the_grid_is_halved_eight_times() -> None:
    n, asked = 101_376, list[int]()

    def loss(k: int) -> float:
        asked.append(k)
        return float(k < 70_000)

    found = smallest_circuits(by_size(loss), n, torch.tensor([0.5]))
    assert 70_000 <= int(found.smallest) <= 70_000 + 0.4 * n / 2**8 + 1
    assert len(asked) <= 25 + 8
    assert int(found.smallest) in asked


def test_a_size_that_no_circuit_reaches_is_minus_one() -> None:
    found = smallest_circuits(by_size(lambda _: 1.0), 100, torch.tensor([0.5]))
    assert found.smallest.tolist() == found.safe.tolist() == [-1]


def test_a_loss_that_is_nan_reaches_nothing() -> None:
    found = smallest_circuits(by_size(lambda _: math.nan), 10, torch.tensor([0.5]))
    assert found.smallest.tolist() == [-1]


def test_a_target_is_reached_by_its_own_loss() -> None:
    found = smallest_circuits(by_size(lambda k: 0.5 if k >= 4 else 0.6), 10, torch.tensor([0.5], dtype=torch.float64))
    assert found.smallest.tolist() == [4]


def test_the_empty_circuit_can_be_enough() -> None:
    found = smallest_circuits(by_size(lambda _: 0.0), 100, torch.tensor([0.5]))
    assert found.smallest.tolist() == found.safe.tolist() == [0]


def test_only_the_empty_circuit_can_be_enough() -> None:
    found = smallest_circuits(by_size(lambda k: float(k > 0)), 100, torch.tensor([0.5]))
    assert found.smallest.tolist() == [0]
    assert found.safe.tolist() == [-1]  # the whole model fails


def test_a_loss_that_rises_again_has_a_larger_safe_size() -> None:
    reaches = {*range(10, 21), *range(60, 101)}
    found = smallest_circuits(by_size(lambda k: float(k not in reaches)), 100, torch.tensor([0.5]))
    assert found.smallest.tolist() == [10]
    (safe,) = found.safe.tolist()
    assert 60 <= safe <= 100
    assert set(range(safe, 101)) <= reaches


def test_circuits_are_searched_each_with_its_own_loss_and_target() -> None:
    true = torch.tensor([7, 50, 200])

    def losses(circuits: Tensor, sizes: Tensor) -> Tensor:
        return (sizes < true[circuits]).double() + circuits  # the loss of circuit p is p or p + 1

    found = smallest_circuits(losses, 100, torch.tensor([0.5, 1.5, 2.5]))
    assert found.smallest.tolist() == [7, 50, -1]
    for p in range(3):
        alone = smallest_circuits(by_size(lambda k, p=p: float(k < int(true[p]))), 100, torch.tensor([0.5]))  # type: ignore[misc]
        assert int(alone.smallest) == int(found.smallest[p])


def test_one_switch_is_searched() -> None:
    assert smallest_circuits(by_size(lambda k: float(k < 1)), 1, torch.tensor([0.5])).smallest.tolist() == [1]
