"""The first screen says for each level and model whether it became easier, by how much, beside its null."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from impact_lightning.report.answers import Fact, cell, effect_row, section, sentence
from impact_lightning.report.forest import bar, forest
from impact_lightning.suite.outcome import Outcome, Verdict
from tests.report.outcomes import EVIL, effect, outcome


def verdict(answer: str, level: str = "neurons", model: str = "wanda50") -> Verdict:
    return Verdict(level, model, "dense", answer, "", [])  # type: ignore[arg-type]  # one of its words


def with_answers(*words: str) -> Outcome:
    return replace(outcome(), verdicts=[verdict(word) for word in words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "There is no answer: no level has compared a model with its reference."),
        (("missing",), "There is no answer: no level has compared a model with its reference."),
        (("easier", "easier"), "Yes. Of 2 answers: easier in 2 (Neurons)."),
        (("easier", "same"), "In part. Of 2 answers: easier in 1 (Neurons) and the same in 1."),
        (("harder", "same"), "No. Of 2 answers: harder in 1 (Neurons) and the same in 1."),
        (("same", "unsettled"), "Not clearly. Of 2 answers: the same in 1 and unsettled in 1."),
        (("mixed",), "It depends. Of 1 answer: mixed in 1."),
        (("same", "same"), "No. Of 2 answers: the same in 2."),
        (("harder", *["unsettled"] * 2), "Not clearly. Of 3 answers: harder in 1 (Neurons) and unsettled in 2."),
        (
            ("easier", "harder", "missing"),
            "It depends. Of 2 answers: easier in 1 (Neurons) and harder in 1 (Neurons); 1 could not be given.",
        ),
    ],
)
def test_one_sentence_answers_the_question(words: tuple[str, ...], said: str) -> None:
    assert sentence(with_answers(*words)) == said


def test_models_that_are_no_sparser_do_not_answer_for_sparsity() -> None:
    made = outcome()
    tuned = replace(made.models[0], name="dense_ft", group="dense_ft")
    answers = [verdict("easier"), verdict("harder", model="dense_ft"), verdict("missing", model="dense_ft")]
    found = replace(made, models=[*made.models, tuned], verdicts=answers)
    assert sentence(found) == (
        "Yes. Of 1 answer: easier in 1 (Neurons). Of models that are no sparser: harder in 1 (Neurons); "
        "1 could not be given."
    )
    assert sentence(replace(found, verdicts=answers[1:])).startswith("No. Of 1 answer")  # nothing else is compared


def test_a_cell_holds_the_answer_and_the_first_measure_that_gives_it() -> None:
    effects = [effect("fvu", "unsettled"), effect("selectivity", "easier", of="neurons"), effect("purity", "easier")]
    found = cell(replace(verdict("easier"), effects=effects))
    assert (found.answer, found.sign.sign, found.sign.word) == ("easier", "▲", "easier")
    size = "+0.12 (0.06\u00a0to\u00a00.18), effect\u00a024.0\u00a0%, null\u00a00"
    assert found.facts == [Fact("selectivity (AUROC), neurons; more is easier", size)]
    assert found.count == "2 of 3 measures"


def test_a_mixed_cell_holds_one_measure_of_each_side() -> None:
    effects = [effect("fvu", "harder"), effect("purity", "same"), effect("selectivity", "easier")]
    found = cell(replace(verdict("mixed"), effects=effects))
    assert [fact.measure for fact in found.facts] == [
        "selectivity (AUROC); more is easier",
        "variance left unexplained; more is easier",  # as the effects of these tests all are
    ]
    assert found.count == "▲\u00a01 ▼\u00a01 of 3 measures"


def test_a_ratio_is_said_as_one() -> None:
    one = effect("nodes", "easier", better="less", difference=0.25, low=0.1, high=0.5, null=1.0, effect=math.log(0.25))
    assert (
        cell(replace(verdict("easier"), effects=[one])).facts[0].size
        == "×\u00a00.25 (0.1\u00a0to\u00a00.5), null\u00a01"
    )
    assert "×\u00a00.25" in effect_row("sparse10", one)
    assert "−1.39 (log)" in effect_row("sparse10", one)


def test_no_verdict_is_a_missing_answer() -> None:
    assert cell(None).answer == "missing"


def test_the_table_has_every_level_and_model_but_the_reference() -> None:
    html = str(section(outcome(), Path()).html)
    table = html[html.index('<table class="answers"') : html.index("</table>")]
    assert table.count("<tr>") == 1 + 4
    for word, n in {"easier": 2, "harder": 1, "same": 2, "mixed": 1, "unsettled": 2, "missing": 4}.items():
        assert table.count(f'class="answer {word}"') == n, word
    assert '<th scope="col">wanda50' in table
    assert '<th scope="col">dense' not in table


def test_every_effect_is_in_the_tables_with_its_null_and_interval() -> None:
    html = str(section(outcome(), Path()).html)
    for text in ("label entropy (nats)", "24.0\u00a0%", "10.0\u00a0%", "0.004", "in pairs, &lt;permuted&gt;"):
        assert text in html
    assert EVIL not in html


@pytest.mark.parametrize(("better", "side"), [("more", 1), ("less", -1)])
def test_right_in_the_forest_is_easier(better: str, side: int) -> None:
    one = bar(effect("m", "easier", better=better))
    assert one.effect == side * 0.24
    assert sorted(one[1:]) == pytest.approx(sorted([side * 0.12, side * 0.36]))  # the share of the difference: 2 of it


def test_the_forest_shows_logarithms_of_ratios() -> None:
    one = effect("m", "easier", better="less", difference=0.5, low=0.25, high=1.0, null=1.0, effect=math.log(0.5))
    assert bar(one) == pytest.approx((math.log(2), 0.0, math.log(4)))


@pytest.mark.parametrize("changes", [{"low": math.nan}, {"difference": 0.0, "effect": 0.0}, {"null": 1.0, "low": -1.0}])
def test_an_interval_without_a_place_is_not_drawn(changes: dict[str, float]) -> None:
    assert math.isnan(bar(effect("m", "unsettled", **changes)).low)


def test_a_level_without_effects_has_no_plot() -> None:
    assert forest("neurons", "Neurons", [verdict("missing")], {}) == ""
