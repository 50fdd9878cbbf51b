"""Methods name every constant, every fingerprint and every unit of work, and how to run it again."""

import json
from dataclasses import replace
from pathlib import Path

from impact_lightning.report.methods import constants, section
from impact_lightning.results import Record
from tests.report.outcomes import EVIL, outcome, write_run


def test_every_constant_is_named_with_its_value(tmp_path: Path) -> None:
    html = str(section(write_run(tmp_path), tmp_path).html)
    for text in ("learning.lr", "0.003", "&lt;b&gt;mean&lt;/b&gt;", "bootstrap over &lt;images&gt;", "labels permuted"):
        assert text in html


def test_constants_that_differ_are_listed_apart() -> None:
    one = Record("m", 1, 0.0, 1, 0, {"steps": 10, "task": "a", "own": True}, "w", "d")
    two = Record("m", 1, 0.0, 1, 0, {"steps": 10, "task": "b"}, "w", "d")
    shared, varied = constants([one, two, two])
    assert shared == [("steps", "10")]
    assert varied == [("task", "a; b"), ("own", "true (of 1 numbers)")]


def test_a_long_list_of_values_is_cut_and_said_to_be() -> None:
    records = [Record("m", 1, 0.0, 1, 0, {"task": f"t{n}", "text": "x" * 1000}, "w", "d") for n in range(9)]
    shared, varied = constants(records)
    assert varied == [("task", "t0; t1; t2; t3; t4; t5; and 3 more")]
    assert shared[0][1].endswith("(1,000 letters, whole in results.json)")


def test_fingerprints_units_and_what_has_failed_are_there(tmp_path: Path) -> None:
    html = str(section(write_run(tmp_path), tmp_path, [("Neurons", "gap <one>")]).html)
    for text in (
        "weights0",
        "data of circuits",
        "✗ failed",
        "– skipped",
        "it has &lt;b&gt;failed&lt;/b&gt; &amp; ended",
    ):
        assert text in html
    assert "Neurons: gap &lt;one&gt;" in html
    assert EVIL not in html


def test_the_command_the_configuration_and_the_times_are_there(tmp_path: Path) -> None:
    html = str(section(write_run(tmp_path), tmp_path).html)
    assert "python -m impact_lightning impact --out &#39;&lt;dir&gt;&#39;" in html
    assert "class_path: Trained" in html
    assert "0:01:15" in html
    assert 'href="tables/records%201.csv"' in html


def test_a_run_without_a_plan_says_how_to_run_it(tmp_path: Path) -> None:
    made = section(outcome(), tmp_path)
    assert made.gaps == ()
    assert "impact --config config.yaml --out DIR" in made.html


def test_a_plan_that_is_none_is_a_gap(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"units": [1]}))
    made = section(outcome(), tmp_path)
    assert made.gaps == ("the command and the times: plan.json is damaged (it is no plan)",)
    assert made.gaps[0] in made.html


def test_nothing_missing_is_said(tmp_path: Path) -> None:
    whole = replace(outcome(), units=[unit for unit in outcome().units if unit.state == "done"])
    assert "Nothing: every unit of work was done" in section(whole, tmp_path).html
