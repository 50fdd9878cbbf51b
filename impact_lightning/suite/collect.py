"""Collects: what all units have left on the disk becomes one outcome."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from impact_lightning import __version__
from impact_lightning.data.module import ImageDataModule
from impact_lightning.data.scenes import SceneData
from impact_lightning.files import write_csv
from impact_lightning.results import Record, read_results
from impact_lightning.suite.answers import verdicts
from impact_lightning.suite.checks import open_images
from impact_lightning.suite.outcome import LEVELS, Entry, Model, Outcome, State, Unit
from impact_lightning.suite.plan import Member, Plan, image_configs
from impact_lightning.suite.planted import planted
from impact_lightning.suite.runner import states_on_disk
from impact_lightning.types import UserError


def collect(
    plan: Plan,
    out: Path,
    *,
    title: str,
    configuration: dict[str, Any],
    margin: float,
    errors: Mapping[str, str],
) -> Outcome:
    """Return the outcome of a run.

    Args:
        plan: The plan.
        out: Folder of the run.
        title: What the run is called.
        configuration: The resolved configuration.
        margin: Effects below this are called the same.
        errors: Why units were skipped or failed in this job.
    """
    units, entries = _read(list(_units(plan, out, errors)), out)
    models = [_model(member, entries) for member in plan.members]
    levels = [level for level in LEVELS if any(unit.level == level for unit in units)]
    owners = {unit.name: unit.models[0] for unit in units if len(unit.models) == 1}
    return Outcome(
        version=__version__,
        title=title,
        configuration=configuration,
        models=models,
        units=units,
        verdicts=list(verdicts(models, levels, entries, owners, margin, _unable(entries, models))),
        planted=list(planted(_scenes(plan, units), entries, units, [one.name for one in models], out)),
        entries=entries,
    )


def _units(plan: Plan, out: Path, errors: Mapping[str, str]) -> Iterator[Unit]:
    """Yield the units with what came of them, in this job or in others."""
    states: dict[str, tuple[State, str]] = {name: (state, why) for name, state, why in states_on_disk(plan, out)}
    for name, work in plan.works.items():
        state, why = states[name]
        if state == "waiting" and name in errors:
            state, why = "skipped", errors[name]
        yield Unit(
            name=name,
            level=work.level,
            models=list(work.models),
            verb=work.verb,
            folder=plan.folder(name),
            fingerprint=plan.fingerprints[name],
            after=list(work.after),
            state=state,
            error=why.replace(str(out), "."),  # wherever the run lies
        )


def _read(units: list[Unit], out: Path) -> tuple[list[Unit], list[Entry]]:
    """Return the units, and the records of all tests; a test whose records cannot be read has failed."""
    kept: list[Unit] = []
    entries: list[Entry] = []
    for unit in units:
        kept.append(unit)
        if unit.verb != "test" or unit.state != "done":
            continue
        try:
            entries += [Entry(unit.level, unit.name, one) for one in read_results(out / unit.folder / "results.json")]
        except UserError as error:
            kept[-1] = replace(unit, state="failed", error=str(error).replace(str(out), "."))
    return kept, entries


def _scenes(plan: Plan, units: Iterable[Unit]) -> dict[str, SceneData]:
    """Return the images that each test has read, where they are scenes with known factors."""
    opened: dict[str, ImageDataModule] = {}
    found = {}
    for unit in units:
        if unit.verb == "test" and unit.state == "done":
            for key in image_configs(plan.works[unit.name].config):
                if key not in opened:
                    opened[key] = open_images(json.loads(key), unit.name)
                if isinstance(data := opened[key], SceneData):
                    found[unit.name] = data
    return found


def _model(member: Member, entries: Iterable[Entry]) -> Model:
    own = {entry.record.measure: entry.record for entry in entries if entry.unit == f"{member.name}/test"}
    return Model(
        name=member.name,
        group=member.group,
        kind=member.source.kind,
        seed=member.seed,
        reference=member.reference,
        sparsity=1 - _value(own, "weight_density"),
        weights=own["top1"].weights if "top1" in own else "",
        top1=_value(own, "top1"),
    )


def _unable(entries: Iterable[Entry], models: Iterable[Model]) -> set[str]:
    """Return the models whose accuracy is not surely above chance."""
    tested = {entry.unit: entry.record for entry in entries if entry.record.measure == "top1" and not entry.level}
    found = {model.name: tested[f"{model.name}/test"] for model in models if f"{model.name}/test" in tested}
    return {name for name, one in found.items() if one.null and one.interval and one.interval.low <= one.null.value}


def _value(records: Mapping[str, Record], measure: str) -> float:
    return records[measure].value if measure in records else math.nan


# ------------------------------------------------------------------------------------------------------------- tables


def write_tables(folder: Path, outcome: Outcome) -> None:
    """Write the outcome as tidy tables: one row for each number, answer, effect, model, unit or planted truth."""
    write_csv(folder / "records.csv", _record_rows(outcome))
    write_csv(folder / "answers.csv", _rows([{**asdict(one), "effects": len(one.effects)} for one in outcome.verdicts]))
    effects = [{"level": one.level, "model": one.model, **asdict(e)} for one in outcome.verdicts for e in one.effects]
    write_csv(folder / "effects.csv", _rows(effects))
    write_csv(folder / "models.csv", _rows([asdict(one) for one in outcome.models]))
    write_csv(folder / "units.csv", _rows([asdict(one) for one in outcome.units]))
    write_csv(folder / "planted.csv", _rows([asdict(one) for one in outcome.planted]))


def _record_rows(outcome: Outcome) -> Iterator[list[Any]]:
    columns = ("value", "low", "high", "null", "n", "seed", "weights", "data", "notes")
    yield ["level", "unit", "of", "measure", *columns]
    for entry in outcome.entries:
        one = entry.record
        interval = ("", "") if one.interval is None else (one.interval.low, one.interval.high)
        null = "" if one.null is None else one.null.value
        about = one.n, one.seed, one.weights, one.data, "; ".join(one.notes)
        yield [entry.level, entry.unit, one.of, one.measure, *map(_cell, (one.value, *interval, null)), *about]


def _rows(found: list[dict[str, Any]]) -> Iterator[list[Any]]:
    """Yield a heading and a row for each; nothing where there is none."""
    if found:
        yield list(found[0])
    for one in found:
        yield [_cell(value) for value in one.values()]


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if isinstance(value, float) and math.isnan(value) else value
