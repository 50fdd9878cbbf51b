"""Findings are means with intervals over classes; a difference is what remains beyond both nulls."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.bootstrap import class_draws
from impact_lightning.neurons.findings import Finding, differences, findings, groups
from impact_lightning.neurons.measures import Measure, Measures
from tests.neurons.test_measures import HEADS, LATER, NEURONS, C, K, made, mean_of, terms

GROUPS = ["heads", "neurons", "blocks.0.heads", "blocks.0.neurons", "blocks.2.neurons"]
PLACES = {"heads": [0], "neurons": [1, 2], "blocks.0.heads": [0], "blocks.0.neurons": [1], "blocks.2.neurons": [2]}


def drawn_by_hand(measures: Measures, finding: Finding, draws: Tensor, *, excess: bool) -> list[float]:
    """Return a mean, or what it is beyond its null, in draws that hold classes this often."""
    values, null = terms(measures, finding.measure, PLACES[finding.of])
    is_compared = excess and measures.by_name[finding.measure].null is not None
    rows = [[c for c in range(C) for _ in range(int(row[c]))] for row in draws]
    return [mean_of(values, row) - (mean_of(null, row) if is_compared else 0.0) for row in rows]


def percentiles(values: list[float]) -> tuple[float, float]:
    defined = torch.tensor([value for value in values if value == value], dtype=torch.float64)
    return float(defined.quantile(0.025)), float(defined.quantile(0.975))


def test_there_is_a_finding_of_every_measure_for_every_kind_and_layer() -> None:
    found = list(findings(made(), seed=0))
    assert {of for of, _ in groups(made())} == set(GROUPS)
    assert dict(groups(made())) == PLACES
    assert sorted((f.measure, f.of) for f in found) == sorted((name, of) for name in made().by_name for of in GROUPS)


def test_findings_are_means_and_percentiles_by_hand() -> None:
    measures, draws = made(), class_draws(C, seed=3)
    for found in findings(measures, seed=3):
        values, null = terms(measures, found.measure, PLACES[found.of])
        assert found.n == len(values)
        assert found.value == pytest.approx(fmean(value for _, value in values), rel=1e-12)
        low, high = percentiles(drawn_by_hand(measures, found, draws, excess=False))
        assert (found.interval.low, found.interval.high) == pytest.approx((low, high), rel=1e-12)
        assert found.interval.how == "bootstrap over classes, 1000 draws, seed 3"
        if measures.by_name[found.measure].null is None:
            assert found.null is None
            continue
        assert found.null is not None
        assert found.null.value == pytest.approx(fmean(value for _, value in null), rel=1e-12)
        assert found.null.how == measures.by_name[found.measure].how


def test_differences_are_of_what_lies_beyond_the_nulls_in_the_same_draws() -> None:
    ours, theirs, draws = made(1), made(2), class_draws(C, seed=3)
    found = list(differences(ours, theirs, seed=3))
    assert len(found) == len(GROUPS) * len(ours.by_name)
    once = torch.ones(1, C)
    for difference in found:
        mine, other = (drawn_by_hand(m, difference, draws, excess=True) for m in (ours, theirs))
        low, high = percentiles([a - b for a, b in zip(mine, other, strict=True)])
        (first,), (second,) = (drawn_by_hand(m, difference, once, excess=True) for m in (ours, theirs))
        assert difference.value == pytest.approx(first - second, rel=1e-12, abs=1e-12)
        interval = difference.interval.low, difference.interval.high
        assert interval == pytest.approx((low, high), rel=1e-12, abs=1e-12)
        assert difference.null is not None
        assert difference.null.value == 0


def test_a_model_does_not_differ_from_itself() -> None:
    for found in differences(made(), made(), seed=0):
        assert (found.value, found.interval.low, found.interval.high) == (0.0, 0.0, 0.0)


def shifted(measures: Measures, by: float) -> Measures:
    """Add a constant to all values and to all nulls."""
    moved = {
        name: Measure(m.values + by, None if m.null is None else m.null + by, m.how)
        for name, m in measures.by_name.items()
    }
    return replace(measures, by_name=moved)


def test_what_is_added_to_values_and_nulls_makes_no_difference() -> None:
    plain, moved = (list(differences(made(1), shifted(made(2), by), seed=0)) for by in (0.0, 8.0))
    for first, second in zip(plain, moved, strict=True):
        if made().by_name[first.measure].null is None:
            assert second.value == pytest.approx(first.value - 8.0)  # there is nothing to subtract
            continue
        assert second.value == pytest.approx(first.value, abs=1e-12)
        assert second.interval.low == pytest.approx(first.interval.low, abs=1e-12)
        assert second.interval.high == pytest.approx(first.interval.high, abs=1e-12)


def test_models_are_compared_the_other_way_round_with_the_other_sign() -> None:
    there, back = (list(differences(a, b, seed=0)) for a, b in ((made(1), made(2)), (made(2), made(1))))
    for first, second in zip(there, back, strict=True):
        assert first.value == -second.value
        assert first.interval.low == pytest.approx(-second.interval.high, abs=1e-12)


def test_layers_that_only_one_model_has_are_left_out() -> None:
    small = replace(made(1), layers=(HEADS, NEURONS), by_name={"units": made(1).by_name["units"]})
    large = replace(made(2), by_name={"units": made(2).by_name["units"]})
    assert "blocks.2.neurons" not in {found.of for found in differences(large, small, seed=0)}
    assert "blocks.2.neurons" not in {found.of for found in differences(small, large, seed=0)}
    assert not list(differences(replace(large, layers=(LATER,)), replace(small, layers=(HEADS,)), seed=0))


def test_layers_that_only_one_model_has_are_not_part_of_a_mean_either() -> None:
    ours, theirs = (replace(made(seed), by_name={"units": made(seed).by_name["units"]}) for seed in (1, 2))
    shared = replace(ours, layers=(HEADS, NEURONS)), replace(theirs, layers=(HEADS, NEURONS))
    expected = next(found for found in differences(*shared, seed=0) if found.of == "neurons")
    for deeper in ((ours, shared[1]), (shared[0], theirs)):
        found = next(found for found in differences(*deeper, seed=0) if found.of == "neurons")
        assert (found.value, found.n) == (expected.value, expected.n)


def test_a_measure_that_is_undefined_everywhere_has_no_number_and_no_term() -> None:
    measures = replace(made(), by_name={"units": Measure(torch.full((K,), torch.nan, dtype=torch.float64))})
    for found in [*findings(measures, seed=0), *differences(measures, made(), seed=0)]:
        assert found.n == 0
        assert math.isnan(found.value)
        assert math.isnan(found.interval.low)


def test_an_interval_holds_the_mean_of_all_classes_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    n_classes, held, trials = 40, 0, 200
    for trial in range(trials):
        values = torch.randn(n_classes, 1, dtype=torch.float64, generator=generator) + 3.0
        measures = replace(made(), layers=(HEADS,), n_classes=n_classes, by_name={"classes": Measure(values)})
        found = next(findings(measures, seed=trial))
        held += found.interval.low <= 3.0 <= found.interval.high
    assert 0.87 * trials <= held <= 0.99 * trials  # 95 % less what 40 classes cost; 4 deviations of 200 trials are 6 %


def test_units_of_one_class_move_together() -> None:
    values = torch.arange(K, dtype=torch.float64)
    alone = replace(made(), preferred=torch.arange(K) % C, by_name={"units": Measure(values % C)})
    found = next(f for f in findings(alone, seed=0) if f.of == "neurons")
    spread = math.sqrt(1.25 / C)  # of a mean of four classes, whose means are 0 to 3; of 13 units it would be 0.31
    assert found.interval.high - found.interval.low > 3 * spread
