"""Findings are means over images and percentiles of draws, computed once more by hand."""

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from impact_lightning.attribution.findings import DRAWS, Finding, Means, differences, findings
from impact_lightning.attribution.study import Key, Scores
from impact_lightning.metrics.bootstrap import image_draws

ROWS = torch.tensor([3, 4, 8, 20, 21, 40])
SEED = 5
Array = NDArray[np.float64]


def scores(values: dict[Key, list[float]]) -> dict[Key, Scores]:
    return {key: Scores(ROWS, torch.tensor(x, dtype=torch.float64)) for key, x in values.items()}


def known(found: list[Finding]) -> dict[Key, Finding]:
    return {(one.method, one.measure): one for one in found}


def percentiles(values: Array) -> tuple[float, float]:
    """Return the interval of a mean by hand: of the images that a draw holds, those with a number count."""
    counts = image_draws(ROWS, draws=DRAWS, seed=SEED).numpy()[1:]
    means = []
    for draw in counts:
        repeated = np.repeat(values, draw.astype(int))
        repeated = repeated[~np.isnan(repeated)]
        means.append(repeated.mean() if len(repeated) else np.nan)
    low, high = np.nanquantile(means, [0.025, 0.975])
    return float(low), float(high)


OURS = [0.1, 0.9, 0.4, 0.3, 0.8, 0.6]
CHANCE = [0.2, 0.1, 0.5, 0.3, 0.0, 0.4]
BOTH = {("rise", "energy"): OURS, ("random", "energy"): CHANCE}


def assert_is(found: Finding, values: Array, n: int = 6) -> None:
    assert found.value == pytest.approx(np.nanmean(values))
    assert found.n == n
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(percentiles(values))
    assert found.interval.how == "bootstrap over images, 1000 draws"


def test_a_mean_has_the_interval_of_its_draws_and_random_maps_beside_it() -> None:
    found = known(list(findings(scores(BOTH), SEED)))
    assert found.keys() == {*BOTH, ("rise", "energy_above_random")}
    assert_is(found["rise", "energy"], np.array(OURS))
    null = found["rise", "energy"].null
    assert null is not None
    assert null.value == pytest.approx(np.mean(CHANCE))
    assert null.how == "random maps"
    assert found["random", "energy"].null is None
    assert found["rise", "energy"].notes == ()


def test_what_is_above_random_maps_is_paired() -> None:
    found = known(list(findings(scores(BOTH), SEED)))["rise", "energy_above_random"]
    assert_is(found, np.array(OURS) - np.array(CHANCE))
    assert found.null is not None
    assert found.null.value == 0


def test_a_shift_of_random_maps_has_no_width() -> None:
    """Unpaired, the interval of a constant difference would be as wide as both of its sides."""
    shifted = {**BOTH, ("rise", "energy"): [x + 0.25 for x in CHANCE]}
    found = known(list(findings(scores(shifted), SEED)))["rise", "energy_above_random"]
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((0.25, 0.25))


def test_undefined_images_are_left_out_and_counted() -> None:
    values = [0.1, np.nan, 0.4, np.inf, 0.8, 0.6]
    found = known(list(findings(scores({**BOTH, ("rise", "energy"): values}), SEED)))
    left = np.array([0.1, np.nan, 0.4, np.nan, 0.8, 0.6])
    assert_is(found["rise", "energy"], left, n=4)
    assert found["rise", "energy"].notes == ("undefined on 2 images, which are left out",)
    assert_is(found["rise", "energy_above_random"], left - np.array(CHANCE), n=4)
    assert found["random", "energy"].notes == ()


def test_a_number_that_is_nowhere_defined_is_nan() -> None:
    found = known(list(findings(scores({("rise", "energy"): [np.nan] * 6}), SEED)))["rise", "energy"]
    assert np.isnan(found.value)
    assert (found.n, found.interval) == (0, None)


def test_one_image_has_no_interval() -> None:
    one = {("rise", "energy"): Scores(ROWS[:1], torch.tensor([0.5], dtype=torch.float64))}
    (found,) = findings(one, SEED)
    assert (found.value, found.n, found.interval) == (0.5, 1, None)


def test_measures_of_some_images_expect_no_more() -> None:
    some = {("rise", "likeness_without_head"): Scores(ROWS[[1, 4]], torch.tensor([0.5, 0.7], dtype=torch.float64))}
    found = known(list(findings(scores(BOTH) | some, SEED)))["rise", "likeness_without_head"]
    assert_is(found, np.array([np.nan, 0.5, np.nan, np.nan, 0.7, np.nan]), n=2)
    assert found.notes == ()
    assert found.null is not None
    assert (found.null.value, found.null.how) == (0, "maps in an order of their own")


def test_the_model_has_its_part() -> None:
    without = {("rise", "randomised_energy"): [0.2, 0.5, 0.4, 0.1, 0.1, 0.3]}
    found = known(list(findings(scores({**BOTH, **without}), SEED)))["rise", "energy_due_to_the_model"]
    assert_is(found, np.array(OURS) - np.array(without["rise", "randomised_energy"]))


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_numbers_do_not_depend_on_how_many_are_in_memory(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    several = {**BOTH, ("rise", "ranks"): CHANCE, ("rise", "some"): [0.1, np.nan, 0.4, np.inf, 0.8, 0.6]}
    wanted = list(findings(scores(several), SEED))
    monkeypatch.setattr("impact_lightning.attribution.findings.AT_ONCE", at_once)
    found = list(findings(scores(several), SEED))
    assert [(one.method, one.measure, one.n, one.notes) for one in found] == [
        (one.method, one.measure, one.n, one.notes) for one in wanted
    ]
    for mine, one in zip(found, wanted, strict=True):
        assert mine.interval is not None
        assert one.interval is not None
        numbers = [(f.value, f.interval.low, f.interval.high) for f in (mine, one) if f.interval is not None]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-12)


def test_draws_of_many_images_take_a_kilobyte_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impact_lightning.attribution.findings.AT_ONCE", 2**18)
    rows = torch.arange(20_000)
    tracemalloc.start()  # of numpy, which draws
    means = Means(rows, SEED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 8 * 2**18  # all at once they would take ten times as much
    assert means.draws.dtype == torch.uint8
    assert torch.equal(means.draws[:, :50].double(), image_draws(rows[:50], draws=DRAWS, seed=SEED))


def test_models_differ_image_by_image() -> None:
    theirs = {("rise", "energy"): [0.3, 0.7, 0.4, 0.4, 0.2, 0.5], ("random", "energy"): CHANCE[::-1]}
    found = known(list(differences(scores(BOTH), scores(theirs), SEED)))
    assert found.keys() == {*BOTH.keys(), ("rise", "energy_above_random")}
    beyond = np.array(OURS) - np.array(theirs["rise", "energy"]) - (np.array(CHANCE) - CHANCE[::-1])
    assert_is(found["rise", "energy_above_random"], beyond)
    assert_is(found["rise", "energy"], np.array(OURS) - np.array(theirs["rise", "energy"]))
    null = found["rise", "energy"].null
    assert null is not None
    assert null.value == pytest.approx(np.mean(np.array(CHANCE) - CHANCE[::-1]), abs=1e-12)
    assert found["random", "energy"].null is None


def test_models_differ_in_what_both_have() -> None:
    assert [one.method for one in differences(scores(BOTH), scores({("random", "energy"): CHANCE}), SEED)] == ["random"]
