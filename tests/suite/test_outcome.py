"""The results file of a run: what is written is read, anything else is refused by name."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from impact_lightning.results import Interval, Null, Record, write_results
from impact_lightning.suite.outcome import (
    Effect,
    Entry,
    Model,
    Outcome,
    Planted,
    Unit,
    Verdict,
    read_outcome,
    write_outcome,
)
from impact_lightning.types import UserError

NAN = math.nan
EFFECT = Effect("m", "", "more", 1.0, 2.0, -1.0, -2.0, 0.0, 0.0, "how", NAN, 0.1, NAN, "unsettled")
RECORD = Record("m", 1, NAN, 3, 0, {"a": [1, 2]}, "w", "d", Null(0.0, "n"), Interval(0.0, NAN, "b"), "x", ("note",))
OUTCOME = Outcome(
    version="0",
    title="<b>",
    configuration={"data": {"class_path": "X"}},
    models=[Model("dense", "dense", "trained", 0, "dense", 0.0, "w", NAN)],
    units=[Unit("dense/fit", "", ["dense"], "fit", "units/x", "f", [], "failed", "no")],
    verdicts=[Verdict("neurons", "b", "dense", "unsettled", "words", [EFFECT])],
    planted=[Planted("sae", "dense", "known", "m", 1.0, 0.0, NAN, NAN, True)],
    entries=[Entry("neurons", "neurons", RECORD), Entry("neurons", "neurons", replace(RECORD, value=1.0))],
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_outcome(tmp_path / "results.json", OUTCOME)
    found = read_outcome(tmp_path / "results.json")
    assert str(found) == str(OUTCOME)  # nan is not nan
    assert len(json.loads((tmp_path / "results.json").read_text())["protocols"]) == 1


def test_the_same_outcome_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_outcome(tmp_path / name, OUTCOME)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_prefix_of_a_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_outcome(path, OUTCOME)
    whole = path.read_bytes()
    for n in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:n])
        with pytest.raises(UserError, match=r"results\.json is not complete JSON"):
            read_outcome(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no results file"),
        ('{"schema": 3}', "schema 3, this version reads 2"),
        ('{"schema": 2}', "damaged"),
        ('{"schema": 2, "protocols": [], "records": [{"level": "a", "unit": "b", "protocol": 4}]}', "damaged"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_outcome(tmp_path / "results.json")


def test_the_file_of_a_single_test_is_told_apart(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", [RECORD])
    with pytest.raises(UserError, match="single `test`"):
        read_outcome(tmp_path / "results.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json: there is no such file"):
        read_outcome(tmp_path / "results.json")
