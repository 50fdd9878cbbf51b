"""Answers by hand: differences, corrections, margins, and what they say together."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from impact_lightning.results import Interval, Null, Record
from impact_lightning.suite.answers import holm, judged, verdict, verdicts
from impact_lightning.suite.effects import Headline, excess, paired
from impact_lightning.suite.outcome import Effect, Entry, Model, Verdict

DENSE = Model("dense", "dense", "trained", 0, "dense", 0.0, "w", 0.9)
SPARSE = Model("sparse", "sparse", "trained", 0, "dense", 0.9, "v", 0.9)


def record(
    measure: str, of: str, value: float, interval: tuple[float, float] | None = None, null: float | None = None
) -> Record:
    return Record(
        measure=measure,
        version=1,
        value=value,
        n=10,
        seed=0,
        protocol={},
        weights="w",
        data="d",
        null=None if null is None else Null(null, "chance"),
        interval=None if interval is None else Interval(*interval, "bootstrap"),
        of=of,
    )


def effect(difference: float = 0.0, half: float = 1.0, **changes: object) -> Effect:
    made = Effect(
        measure="m",
        of="",
        better="more",
        value=1.0,
        reference=1.0,
        difference=difference,
        low=difference - half,
        high=difference + half,
        null=0.0,
        how="",
        effect=difference,
        margin=0.1,
        p=2 * float(stats.norm.sf(abs(difference) * 1.96 / half)),
        judgement="unsettled",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def ask(level: str, records: Sequence[Record], unit: str = "u", margin: float = 0.1) -> Verdict:
    entries = [Entry(level, unit, one) for one in records]
    [found] = verdicts([DENSE, SPARSE], [level], entries, {unit: "dense"}, margin)
    return found


# ------------------------------------------------------------------------------------------------------- judgements


@pytest.mark.parametrize(
    ("difference", "half", "better", "judgement"),
    [
        (1.0, 0.5, "more", "easier"),
        (1.0, 0.5, "less", "harder"),
        (-1.0, 0.5, "less", "easier"),
        (-1.0, 0.5, "more", "harder"),
        (1.0, 1.5, "more", "unsettled"),
        (0.05, 0.04, "more", "same"),  # surely there, and surely small
        (0.05, 0.06, "more", "unsettled"),  # reaches over the margin
    ],
)
def test_a_difference_is_judged_by_its_interval_and_the_margin(
    difference: float, half: float, better: str, judgement: str
) -> None:
    assert judged(effect(difference, half, better=better)).judgement == judgement


def test_the_margin_is_a_share_of_what_the_reference_has() -> None:
    small = effect(0.5, 0.2, effect=0.05)  # the reference has 10
    assert judged(small).judgement == "same"
    assert judged(replace(small, effect=0.5)).judgement == "easier"
    assert judged(replace(small, effect=math.nan)).judgement == "unsettled"  # both are at chance


def test_a_sure_difference_within_the_margin_is_not_called_easier() -> None:
    assert judged(effect(0.5, 0.2, effect=0.09)).judgement == "unsettled"  # its interval reaches over the margin
    assert judged(effect(0.5, 0.2, effect=0.11)).judgement == "easier"


def test_p_values_are_corrected_as_holm_does() -> None:
    raw = [0.01, 0.04, 0.03, 0.005]
    found = [one.p for one in holm([effect(p=p) for p in raw])]
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one.p for one in holm([effect(p=p) for p in [*raw, math.nan]])][:4] == pytest.approx(found)
    assert [one.p for one in holm([effect(p=p) for p in raw[::-1]])] == pytest.approx(found[::-1])


@pytest.mark.parametrize(
    ("judgements", "answer"),
    [
        ([], "missing"),
        (["same", "same"], "same"),
        (["same", "unsettled"], "unsettled"),
        (["easier", "same", "unsettled"], "easier"),
        (["harder", "unsettled"], "harder"),
        (["easier", "harder"], "mixed"),
    ],
)
def test_effects_give_one_answer(judgements: list[str], answer: str) -> None:
    found = verdict("neurons", SPARSE, [effect(1.0, judgement=one) for one in judgements])
    assert found.answer == answer
    assert "sparse" in found.words
    assert "dense" in found.words


# ----------------------------------------------------------------------------------------------------------- levels


def test_neurons_are_compared_in_pairs_beyond_chance() -> None:
    records = [
        record("selectivity", "dense/neurons", 0.8, (0.78, 0.82), 0.5),
        record("selectivity", "sparse/neurons", 0.9, (0.88, 0.92), 0.52),
        replace(
            record("selectivity", "sparse - dense/neurons", 0.08, (0.06, 0.10), 0.0),
            protocol={"n_classes": 10},
            interval=Interval(0.06, 0.10, "bootstrap over classes"),
        ),
        record("selectivity", "sparse - dense/heads", -0.08, (-0.1, -0.06), 0.0),
    ]
    found = ask("neurons", records)
    [only] = found.effects
    assert (only.value, only.reference, only.difference) == (0.9, 0.8, 0.08)
    assert only.effect == pytest.approx(0.08 / 0.3)
    error = 0.04 / (2 * 1.959964) * math.sqrt(10 / 9)  # ten classes, whose draws vary less than they do
    assert only.p == pytest.approx(2 * stats.t.sf(0.08 / error, 9))
    assert only.low == pytest.approx(0.08 - stats.t.ppf(0.975, 9) * error)
    assert only.high == pytest.approx(0.08 + stats.t.ppf(0.975, 9) * error)
    assert found.answer == "easier"


def test_intervals_over_few_classes_hold_as_often_as_they_say() -> None:
    generator, draws, hits = np.random.default_rng(0), 200, 0
    orders = generator.integers(8, size=(draws, 8))
    for _ in range(1500):
        differences = generator.normal(size=8)  # of eight classes; in truth there is none
        means = differences[orders].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        both = replace(
            record("m", "sparse - dense/x", float(differences.mean()), (low, high)),
            protocol={"n_classes": 8},
            interval=Interval(low, high, "bootstrap over classes"),
        )
        table = {
            (one.of, one.measure): one for one in (record("m", "sparse/x", 1.0), record("m", "dense/x", 1.0), both)
        }
        found = paired(table, "sparse - dense/x", "sparse/x", "dense/x", Headline("m", "more"))
        assert found is not None
        hits += found.low <= 0 <= found.high
    assert hits / 1500 == pytest.approx(0.95, abs=0.017)  # three standard errors; the draws alone give 0.89


def test_less_entropy_is_easier() -> None:
    records = [
        record("label_entropy", "dense/neurons", 2.0, (1.9, 2.1), 2.3),
        record("label_entropy", "sparse/neurons", 2.2, (2.1, 2.3), 2.3),
        record("label_entropy", "sparse - dense/neurons", 0.2, (0.1, 0.3), 0.0),
    ]
    assert ask("neurons", records).answer == "harder"


def test_maps_are_compared_above_random_ones() -> None:
    name = "transformer_attribution"
    records = [
        record("rise_deletion_auc", f"dense/{name}", 0.3, (0.29, 0.31), 0.5),
        record("rise_deletion_auc", f"sparse/{name}", 0.2, (0.19, 0.21), 0.5),
        record("rise_deletion_auc", f"sparse - dense/{name}", 0.1, (0.0, 0.2), 0.3),
        record("rise_deletion_auc_above_random", f"sparse - dense/{name}", -0.1, (-0.12, -0.08), 0.0),
    ]
    found = ask("attribution", records)
    assert [one.difference for one in found.effects] == [-0.1]
    assert found.answer == "easier"


def test_circuits_are_compared_by_ratios() -> None:
    records = []
    for measure, ratio, low, high in (("nodes", 0.5, 0.4, 0.625), ("edges_over_density", 1.0, 0.97, 1.03)):
        records += [
            record(f"{measure}_geometric_mean", "dense", 100.0),
            record(f"{measure}_geometric_mean", "sparse", 100.0 * ratio),
            record(f"{measure}_ratio", "sparse / dense", ratio, (low, high), 1.0),
        ]
    found = ask("circuits", records)
    assert [one.judgement for one in found.effects] == ["easier", "same"]
    assert found.effects[0].effect == pytest.approx(math.log(0.5))
    assert found.effects[0].null == 1.0
    assert "0.50 times the nodes" in found.words


def test_few_tasks_are_as_unsure_as_student_says() -> None:
    logs = np.log([1.3, 1.5, 1.7])
    test = stats.ttest_1samp(logs, 0.0)
    low, high = test.confidence_interval(0.95)
    ratio = replace(
        record("nodes_ratio", "sparse / dense", math.exp(logs.mean()), (math.exp(low), math.exp(high))), n=3
    )
    means = [record("nodes_geometric_mean", name, 1.0) for name in ("dense", "sparse")]
    [only] = ask("circuits", [ratio, *means]).effects
    assert only.p == pytest.approx(test.pvalue)


@pytest.mark.parametrize(("left", "judgement"), [(3, "easier"), (2, "easier"), (1, "unsettled")])
def test_tasks_without_a_circuit_are_spoken_of(left: int, judgement: str) -> None:
    notes = () if left == 3 else (f"{3 - left} tasks in which one of them has no circuit are left out",)
    ratio = replace(record("nodes_ratio", "sparse / dense", 0.5, (0.45, 0.55)), n=max(left, 2), notes=notes)
    tasks = [record("loss_full", f"sparse/task {i}/seed 0", 0.1) for i in range(3 if left > 1 else 5)]
    means = [record("nodes_geometric_mean", name, 1.0) for name in ("dense", "sparse")]
    found = ask("circuits", [ratio, *tasks, *means])
    [only] = found.effects
    assert only.judgement == judgement
    assert only.of == {3: "", 2: "2 of 3 tasks", 1: "2 of 5 tasks"}[left]
    assert all(note in only.how for note in notes)
    assert (" in 2 of 3 tasks (" in found.words) == (left == 2)


def test_dictionaries_are_compared_by_intervals_of_both() -> None:
    own = [record("fvu", "blocks.1/0-BatchTopK-x8-s0", 0.3, (0.26, 0.34), 1.0)]
    other = [record("fvu", "blocks.1/0-BatchTopK-x8-s0", 0.2, (0.17, 0.23), 1.0)]
    entries = [Entry("sae", "a", one) for one in other] + [Entry("sae", "b", one) for one in own]
    [found] = verdicts([DENSE, SPARSE], ["sae"], entries, {"a": "dense", "b": "sparse"}, 0.01)
    [only] = found.effects
    assert only.difference == pytest.approx(0.1)
    assert (only.low, only.high) == pytest.approx((0.05, 0.15))  # 0.04 and 0.03 at right angles
    assert only.effect == pytest.approx(0.1 / 0.8)
    assert found.answer == "harder"


def test_what_the_model_loses_is_compared_as_it_is() -> None:
    own = record("loss_recovered", "site/0-x8-s0", 0.99, (0.98, 1.00), 0.24)  # of rows replaced by their mean
    other = record("loss_recovered", "site/0-x8-s0", 0.98, (0.97, 0.99), 0.13)
    entries = [Entry("sae", "a", other), Entry("sae", "b", own)]
    [found] = verdicts([DENSE, SPARSE], ["sae"], entries, {"a": "dense", "b": "sparse"}, 0.1)
    assert found.effects[0].difference == pytest.approx(0.01)
    assert found.effects[0].effect == pytest.approx(0.01 / 0.98)
    assert found.effects[0].share_of == "what dense has"
    assert found.answer == "same"
    worse = record("loss_recovered", "site/0-x8-s0", 0.96, (0.955, 0.965), 0.9)  # a null nearby makes it no larger
    [found] = verdicts(
        [DENSE, SPARSE], ["sae"], [entries[0], Entry("sae", "b", worse)], {"a": "dense", "b": "sparse"}, 0.1
    )
    assert found.answer == "same"


def test_dictionaries_of_several_seeds_vary_between_them() -> None:
    def of(model: str, values: Sequence[float]) -> list[Entry]:
        return [
            Entry(
                "sae", f"{model}.{seed}", record("fvu", f"site/0-x8-s{seed}", value, (value - 1e-6, value + 1e-6), 1.0)
            )
            for seed, value in enumerate(values)
        ]

    entries = [*of("dense", [0.1, 0.3, 0.5]), *of("sparse", [0.2, 0.4, 0.6])]
    owners = {entry.unit: entry.unit.split(".")[0] for entry in entries}
    [found] = verdicts([DENSE, SPARSE], ["sae"], entries, owners, 0.1)
    [only] = found.effects
    assert only.difference == pytest.approx(0.1)
    welch = stats.ttest_ind([0.2, 0.4, 0.6], [0.1, 0.3, 0.5], equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert (only.low, only.high) == pytest.approx((interval.low, interval.high), rel=1e-4)
    assert only.p == pytest.approx(welch.pvalue, rel=1e-4)
    assert found.answer == "unsettled"


def test_more_seeds_on_the_same_images_know_no_more_of_the_images() -> None:
    def half(seeds: int) -> float:
        entries = [
            Entry("sae", model, record("fvu", f"site/0-x8-s{seed}", value, (value - 0.1, value + 0.1), 1.0))
            for model, value in (("dense", 0.3), ("sparse", 0.4))
            for seed in range(seeds)
        ]
        [found] = verdicts([DENSE, SPARSE], ["sae"], entries, {"dense": "dense", "sparse": "sparse"}, 0.1)
        return found.effects[0].high - found.effects[0].difference

    assert half(1) == pytest.approx(math.hypot(0.1, 0.1))
    assert half(4) == pytest.approx(half(1))


def test_the_same_model_twice_is_the_same() -> None:
    nothing = effect(effect=math.nan, p=1.0, low=0.0, high=0.0)
    assert judged(nothing).judgement == "same"


def test_a_reference_at_chance_gives_no_share() -> None:
    more, less = Headline("m", "more"), Headline("m", "less")
    assert math.isnan(excess([record("m", "x", 0.5, (0.4, 0.6), 0.45)], more))
    assert excess([record("m", "x", 0.7, (0.6, 0.8), 0.5)], more) == pytest.approx(0.2)
    assert math.isnan(excess([record("m", "x", 0.7, (0.6, 0.8), 0.5)], less))  # worse than chance
    assert excess([record("m", "x", 0.3, (0.2, 0.4), 0.5)], less) == pytest.approx(0.2)
    assert excess([record("m", "x", 0.7)], more) == pytest.approx(0.7)
    assert excess([record("m", "x", 0.7), record("m", "y", 0.9)], more) == pytest.approx(0.8)  # of two seeds
    assert math.isnan(excess([record("m", "x", 0.7), record("m", "y", 0.5, (0.4, 0.6), 0.5)], more))
    assert excess([record("m", "x", 0.7, null=0.5)], Headline("m", "more", is_beyond=False)) == pytest.approx(0.7)


def test_where_the_reference_is_at_chance_the_model_is_the_scale() -> None:
    records = [
        record("selectivity", "dense/neurons", 0.5, (0.45, 0.55), 0.5),
        record("selectivity", "sparse/neurons", 0.7, (0.65, 0.75), 0.5),
        record("selectivity", "sparse - dense/neurons", 0.2, (0.15, 0.25), 0.0),
    ]
    found = ask("neurons", records)
    [only] = found.effects
    assert only.effect == pytest.approx(1.0)
    assert only.judgement == "easier"
    assert "100% of what sparse has beyond chance" in found.words
    at_chance = [replace(one, value=0.51) if one.of == "sparse/neurons" else one for one in records]
    assert ask("neurons", at_chance).effects[0].judgement == "unsettled"


def test_a_model_that_cannot_do_the_task_settles_nothing() -> None:
    records = [
        record("selectivity", "dense/neurons", 0.8, (0.78, 0.82), 0.5),
        record("selectivity", "sparse/neurons", 0.9, (0.88, 0.92), 0.52),
        record("selectivity", "sparse - dense/neurons", 0.08, (0.06, 0.10), 0.0),
    ]
    entries = [Entry("neurons", "u", one) for one in records]
    [found] = verdicts([DENSE, SPARSE], ["neurons"], entries, {}, 0.1, {"dense"})
    assert found.answer == "missing"
    assert "dense does the task no better than chance" in found.words
    assert {one.judgement for one in found.effects} == {"unsettled"}


def test_what_decides_comes_first() -> None:
    some = [effect(0.05, 0.04), effect(0.3, 0.1), effect(-0.9, 0.1), effect(0.2, 1.0)]
    found = verdict("neurons", SPARSE, holm(some)).effects
    assert [one.difference for one in found] == [-0.9, 0.3, 0.2, 0.05]


def test_what_is_surely_the_same_is_not_called_unsure() -> None:
    some = [effect(0.0, 0.01, judgement="same")] * 4 + [effect(0.09, 0.03)]
    assert "4 of 5 differences are within the margin" in verdict("neurons", SPARSE, some).words
    assert "none of 1 differences is sure" in verdict("neurons", SPARSE, some[4:]).words


def test_nothing_measured_is_said() -> None:
    assert ask("neurons", []).answer == "missing"
    assert "was not compared" in ask("neurons", []).words
