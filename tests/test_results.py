"""A record survives the file, compares only with its like, and a damaged file is refused by name."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from impact_lightning.results import Interval, Null, Record, read_results, write_results
from impact_lightning.types import UserError

RECORD = Record(
    measure="top1",
    version=1,
    value=0.75,
    n=400,
    seed=0,
    protocol={"mean": [0.5, 0.5], "precision": "32-true"},
    weights="aaaa",
    data="dddd",
    null=Null(0.25, "labels permuted"),
    interval=Interval(0.7, 0.8, "Wilson"),
    notes=("2 damaged samples left out",),
)


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    nothing = Interval(math.nan, math.nan, "normal")
    undefined = replace(RECORD, measure="loss", value=math.nan, null=Null(math.inf, "none"), interval=nothing)
    write_results(tmp_path / "results.json", [RECORD, undefined])
    first, second = read_results(tmp_path / "results.json")
    assert first == RECORD
    assert second.interval is not None
    assert second.null is not None
    assert all(map(math.isnan, (second.value, second.interval.low, second.interval.high, second.null.value)))


def test_a_repeated_measurement_replaces_its_former_outcome_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results(path, [RECORD, replace(RECORD, seed=1)])
    write_results(path, [replace(RECORD, value=0.8)])
    assert [(record.seed, record.value) for record in read_results(path)] == [(0, 0.8), (1, 0.75)]


def test_records_of_other_weights_and_seeds_compare() -> None:
    assert RECORD.difference(replace(RECORD, value=0.5, weights="bbbb", seed=1)) == 0.25


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"measure": "top5"}, "measure"),
        ({"version": 2}, "version"),
        ({"data": "eeee"}, "data"),
        ({"of": "blocks.1"}, "of"),
        ({"protocol": {"mean": [0.5, 0.4], "precision": "32-true"}}, "protocol.mean"),
        ({"protocol": {"mean": [0.5, 0.5]}}, "protocol.precision"),
    ],
)
def test_records_of_another_protocol_do_not_compare(change: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        RECORD.difference(replace(RECORD, **change))  # type: ignore[arg-type]


def test_a_record_read_from_a_file_compares_with_a_fresh_one(tmp_path: Path) -> None:
    fresh = replace(RECORD, protocol={"mean": (0.5, 0.5), "precision": "32-true"})
    write_results(tmp_path / "results.json", [fresh])
    assert fresh.difference(read_results(tmp_path / "results.json")[0]) == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"schema": 1, "rec', "not complete JSON"),
        ("[]", "no `schema`"),
        ('{"schema": 0, "records": []}', "schema 0"),
        ('{"schema": 1, "records": [{"measure": "top1"}]}', "does not fit the schema"),
        ('{"schema": 1, "records": [1]}', "does not fit the schema"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as refusal:
        read_results(path)
    assert str(path) in str(refusal.value)


def test_the_file_is_plain_json_without_nan(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", [replace(RECORD, value=math.nan)])
    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["records"][0]["value"] is None
