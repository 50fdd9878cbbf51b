"""Results: one record for every number that this project reports, and the file that holds them.

`docs/results.md` is the schema; a change of it raises `SCHEMA`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from impact_lightning.files import atomic_write
from impact_lightning.types import UserError

SCHEMA = 1
Constant = str | int | float | bool | None | Sequence["Constant"] | dict[str, "Constant"]


@dataclass(frozen=True)
class Null:
    """The value that the measure takes where there is nothing to find."""

    value: float
    how: str  # "labels permuted (exact expectation)", "20 random circuits of the same size per site", ...


@dataclass(frozen=True)
class Interval:
    """A confidence interval and how it was made."""

    low: float
    high: float
    how: str  # "Wilson", "bootstrap over classes, 1000 draws, seed 0", ...
    level: float = 0.95


@dataclass(frozen=True)
class Record:
    """One number and everything that is needed to judge it.

    Args:
        measure: Name of the measure, such as `top1`.
        version: Version of its definition; numbers of different versions never compare.
        value: The number; nan where it is undefined.
        n: Number of samples behind it.
        seed: Seed of everything that was drawn.
        protocol: Every constant that defines the number: ablation, baseline, steps, token set, transform, ...
        weights: Fingerprint of the weights that were measured.
        data: Fingerprint of the data they were measured on.
        null: The value where there is nothing to find.
        interval: The confidence interval.
        of: What was measured: a site, a class, a task; empty for the whole model.
        notes: What a reader must know, such as samples that were left out.
    """

    measure: str
    version: int
    value: float
    n: int
    seed: int
    protocol: dict[str, Constant]
    weights: str
    data: str
    null: Null | None = None
    interval: Interval | None = None
    of: str = ""
    notes: tuple[str, ...] = field(default=())

    def identity(self) -> str:
        """Return what makes two records the same measurement, whatever its outcome."""
        return json.dumps(
            [self.measure, self.version, self.of, self.seed, self.protocol, self.weights, self.data], sort_keys=True
        )

    def difference(self, other: "Record") -> float:
        """Return `self - other`; refuse records that do not measure the same thing in the same way.

        The weights and the seed may differ: that is what is compared.
        """
        for name in ("measure", "version", "of", "data"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise UserError(f"these records do not compare: their {name} is {mine!r} and {theirs!r}")
        for key in sorted(self.protocol.keys() | other.protocol.keys()):
            mine, theirs = self.protocol.get(key), other.protocol.get(key)
            if _canonical(mine) != _canonical(theirs):
                raise UserError(
                    f"these records of {self.measure} do not compare: protocol.{key} is {mine!r} and {theirs!r}"
                )
        return self.value - other.value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)  # a tuple and the list that it becomes in a file are the same


def write_results(path: Path, records: Iterable[Record]) -> None:
    """Add records to a results file: a measurement made again replaces its former outcome, others stay."""
    kept = {record.identity(): record for record in (read_results(path) if path.exists() else [])}
    kept.update((record.identity(), record) for record in records)
    content = {"schema": SCHEMA, "records": [record_to_json(record) for record in kept.values()]}
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_results(path: Path) -> list[Record]:
    """Return the records of a results file; a damaged or foreign file is refused by name."""
    content = read_content(path, "remove it and run `test` again")
    if content["schema"] != SCHEMA:
        raise UserError(f"{path} has schema {content['schema']}, this version reads {SCHEMA}; run `test` again")
    try:
        return [record_from_json(entry) for entry in content["records"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: a record does not fit the schema ({error})") from None


def read_content(path: Path, remedy: str) -> dict[str, Any]:
    """Return what a results file of any schema holds; what is none is refused, with what to do about it."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such results file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not complete JSON ({error}); {remedy}") from None
    if not isinstance(content, dict) or "schema" not in content:
        raise UserError(f"{path} is no results file: it has no `schema`")
    return content


def record_to_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON holds it."""
    return plain(asdict(record))  # type: ignore[no-any-return]


def plain(value: Any) -> Any:
    """Return a value with null for every number that is not finite: JSON has neither nan nor infinity."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def record_from_json(entry: dict[str, Any]) -> Record:
    """Return the record that `record_to_json` was given; what does not fit raises one of a few errors."""
    null, interval = entry["null"], entry["interval"]
    unknown = entry.keys() - {f.name for f in fields(Record)}
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    return Record(
        **{
            **entry,
            "value": _number(entry["value"]),
            "null": null and Null(**{**null, "value": _number(null["value"])}),
            "interval": interval
            and Interval(**{**interval, "low": _number(interval["low"]), "high": _number(interval["high"])}),
            "notes": tuple(entry["notes"]),
        }
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
