"""Where the report finds things: the units of a level, the model of a record, the files of a unit."""

import csv
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from impact_lightning.results import Record
from impact_lightning.suite.outcome import Entry, Model, Outcome, Unit
from impact_lightning.types import UserError

Row = dict[str, str]


def tests(outcome: Outcome, level: str) -> Iterator[Unit]:
    """Yield the units that tested a level."""
    return (unit for unit in outcome.units if unit.level == level and unit.verb == "test")


def undone(unit: Unit) -> str:
    """Return what is said of a unit that has left nothing to show."""
    return f"the unit {unit.name} is {unit.state}{f': {unit.error}' if unit.error else ''}"


def unit_folder(folder: Path, unit: Unit) -> Path:
    """Return where a unit wrote its files; one outside of the run is refused."""
    path = folder / unit.folder
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"unit {unit.name}: its folder {unit.folder} is outside of the run")
    return path


def records(outcome: Outcome, level: str) -> Iterator[tuple[Model, str, Record]]:
    """Yield the records of a level that are of one model, with the model and what they are of within it."""
    longest_first = sorted(outcome.models, key=lambda model: -len(model.name))  # a name may begin with another one
    by_name = {model.name: model for model in longest_first}
    by_unit = {unit.name: unit for unit in outcome.units}
    for entry in outcome.entries:
        if entry.level == level and (found := _model_of(entry, by_name, by_unit.get(entry.unit))):
            yield found[0], found[1], entry.record


def _model_of(entry: Entry, models: dict[str, Model], unit: Unit | None) -> tuple[Model, str] | None:
    """Return the model that a record names, or the only one of its unit, and the rest of what it is of."""
    of = entry.record.of
    for name, model in models.items():
        if of == name or of.startswith(f"{name}/"):
            return model, of[len(name) + 1 :]
    if unit is not None and len(unit.models) == 1 and unit.models[0] in models:
        return models[unit.models[0]], of
    return None


def read_rows(path: Path, folder: Path) -> list[Row]:
    """Return the rows of a table; a missing or damaged one is refused by its name within the run."""
    name = path.relative_to(folder)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        raise UserError(f"{name} is missing") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name} is damaged ({error})") from None
    if not rows or any(None in row or None in row.values() for row in rows):
        raise UserError(f"{name} is damaged (rows are missing or cut)")
    return rows


def read_tensors(path: Path, folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; a missing or damaged one is refused by its name within the run."""
    name = path.relative_to(folder)
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{name} is missing") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{name} is damaged ({error})") from None
