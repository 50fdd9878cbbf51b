"""Methods: every constant, fingerprint and unit of work, and how to make the same run again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from impact_lightning.report.section import Section, render
from impact_lightning.report.words import LEVEL_TITLES, UNKNOWN, measure_name, several
from impact_lightning.results import Record
from impact_lightning.suite.outcome import LEVELS, Outcome, Unit

PLAN = "plan.json"
LIMIT = 300  # letters of a value that are read; the rest is in results.json
MOST = 6  # values of a constant that are listed
STATES = {"done": "✓ done", "failed": "✗ failed", "skipped": "– skipped", "waiting": "… waiting"}


class Protocol(NamedTuple):
    """The constants of a level: those that all its numbers share, and those that differ between them."""

    title: str
    n: int
    shared: list[tuple[str, str]]
    varied: list[tuple[str, str]]
    measures: list[list[str]]


def section(outcome: Outcome, folder: Path, gaps: Sequence[tuple[str, str]] = ()) -> Section:
    """Return how everything was measured.

    Args:
        outcome: What was found.
        folder: The folder of the run.
        gaps: What is missing in the other sections, each with the title of its section.
    """
    plan, own = _plan(folder / PLAN)
    units = [unit_row(unit, plan.get("units", {})) for unit in outcome.units]
    failed = [unit for unit in outcome.units if unit.state != "done"]
    html = render(
        "methods.html",
        version=outcome.version,
        command=plan.get("command", ""),
        configuration=yaml.safe_dump(outcome.configuration, sort_keys=False, allow_unicode=True),
        models=[[m.name, m.group, m.kind, str(m.seed), m.reference, m.weights or UNKNOWN] for m in outcome.models],
        data=_fingerprints(outcome),
        units=units,
        failed=failed,
        states=STATES,
        protocols=list(protocols(outcome)),
        gaps=[*gaps, *(("Methods", gap) for gap in own)],
        tables=[(f"tables/{quote(path.name)}", path.name) for path in sorted((folder / "tables").glob("*.csv"))],
        several=several,
    )
    return Section("methods", "Methods", html, gaps=tuple(own))


def _plan(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what is known of the work itself; a run may be without, and a damaged file is said to be one."""
    try:
        plan = json.loads(path.read_text())
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError) as error:
        return {}, [f"the command and the times: {path.name} is damaged ({error})"]
    if not isinstance(plan, dict) or not isinstance(plan.get("units", {}), dict):
        return {}, [f"the command and the times: {path.name} is damaged (it is no plan)"]
    return plan, []


def unit_row(unit: Unit, times: Mapping[str, Any]) -> list[str]:
    """Return a row of the table of units."""
    time = times.get(unit.name)
    seconds = time.get("seconds") if isinstance(time, dict) else None
    took = str(timedelta(seconds=round(seconds))) if isinstance(seconds, int | float) else ""
    level = LEVEL_TITLES.get(unit.level, unit.level)
    return [unit.name, STATES[unit.state], unit.error, level, unit.verb, unit.folder, took, unit.fingerprint]


def _fingerprints(outcome: Outcome) -> list[list[str]]:
    """Return which data each level was measured on."""
    seen = dict.fromkeys((entry.level, entry.record.data) for entry in outcome.entries)
    return [[LEVEL_TITLES.get(level, level or "models"), data] for level, data in seen]


def protocols(outcome: Outcome) -> Iterator[Protocol]:
    """Yield the constants of every level that has numbers."""
    for level in dict.fromkeys([*LEVELS, *(entry.level for entry in outcome.entries)]):
        records = [entry.record for entry in outcome.entries if entry.level == level]
        if records:
            shared, varied = constants(records)
            title = LEVEL_TITLES.get(level, level or "Models")
            yield Protocol(title, len(records), shared, varied, _measures(records))


def constants(records: Sequence[Record]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the constants that all records share, and those that differ or that only some have.

    Example:
        >>> one = Record("m", 1, 0.0, 1, 0, {"steps": 10, "site": {"block": 1}}, "w", "d")
        >>> two = Record("m", 1, 0.0, 1, 0, {"steps": 10, "site": {"block": 2}}, "w", "d")
        >>> constants([one, two])
        ([('steps', '10')], [('site.block', '1; 2')])
    """
    values: dict[str, dict[str, int]] = {}
    for text, n in _counted(records).items():
        for key, value in _flat("", json.loads(text)):
            counts = values.setdefault(key, {})
            counts[value] = counts.get(value, 0) + n
    shared, varied = [], []
    for key, counts in values.items():
        if len(counts) == 1 and sum(counts.values()) == len(records):
            shared.append((key, next(iter(counts))))
        else:
            listed = [*list(counts)[:MOST], *([f"and {len(counts) - MOST} more"] if len(counts) > MOST else [])]
            some = "" if sum(counts.values()) == len(records) else f" (of {sum(counts.values()):,} numbers)"
            varied.append((key, "; ".join(listed) + some))
    return shared, varied


def _counted(records: Sequence[Record]) -> dict[str, int]:
    """Return each protocol as JSON, and how many records have it: thousands may share one."""
    counts: dict[str, int] = {}
    for record in records:
        text = json.dumps(record.protocol)
        counts[text] = counts.get(text, 0) + 1
    return counts


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield every constant below a key, its name with dots."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    yield prefix, text if len(text) <= LIMIT else f"{text[:LIMIT]}… ({len(text):,} letters, whole in results.json)"


def _measures(records: Sequence[Record]) -> list[list[str]]:
    """Return a row for each measure: version, how many numbers, samples behind them, what nulls and intervals are."""
    rows = []
    by_name: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        by_name.setdefault((record.measure, record.version), []).append(record)
    for (name, version), own in by_name.items():
        n = sorted({record.n for record in own})
        samples = f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,} to {n[-1]:,}"
        nulls = dict.fromkeys(record.null.how for record in own if record.null)
        intervals = dict.fromkeys(record.interval.how for record in own if record.interval)
        seeds = ", ".join(str(seed) for seed in sorted({record.seed for record in own}))
        row = [name, measure_name(name), str(version), str(len(own)), samples, seeds, _some(nulls), _some(intervals)]
        rows.append(row)
    return rows


def _some(hows: Mapping[str, None]) -> str:
    listed = list(hows)
    return "; ".join(listed[:2]) + (f"; and {len(listed) - 2} more" if len(listed) > 2 else "") if listed else "none"
