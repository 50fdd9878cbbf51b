"""Neurons: what is known of every class, as violins by block and model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast, get_args

import torch

from impact_lightning.neurons.layers import Kind, Layer
from impact_lightning.neurons.look import READABLE
from impact_lightning.neurons.measures import PERMUTED, Measure, Measures
from impact_lightning.neurons.violins import SHOWN, violins
from impact_lightning.report.figures import Plate, groups, plates, svg
from impact_lightning.report.section import Section
from impact_lightning.report.sources import Row, read_rows, records, tests, undone, unit_folder
from impact_lightning.suite.outcome import Outcome, Unit
from impact_lightning.types import UserError

CAPTION = (
    "Each violin is the distribution over classes of one measure in one block of one model. Its null, which is what "
    "the measure would be if there were nothing to find, is the pale left half or the dashed line. Selectivity and "
    "ablation impact: higher is more selective; class variance and label entropy: lower is more selective."
)


@dataclass(frozen=True)
class ClassMeasures:
    """What `classes.csv` holds of a model: the part of `Measures` that violins show."""

    layers: Sequence[Layer] = ()
    n_classes: int = 0
    by_name: dict[str, Measure] = field(default_factory=dict)


def section(outcome: Outcome, folder: Path) -> Section:
    """Return the violins of every unit of work that tested neurons.

    Args:
        outcome: What was found.
        folder: The folder of the run.
    """
    shown, gaps = [], list[str]()
    for unit in tests(outcome, "neurons"):
        if unit.state != "done":
            gaps.append(undone(unit))
            continue
        found, missing = _read(outcome, folder, unit)
        gaps += missing
        shown += [_plate(unit, found, kind) for kind in get_args(Kind) if _has(found, kind)]
    if not shown and not gaps:
        gaps.append("the level of neurons was not tested")
    return Section("neurons", "Neurons", plates(*shown), gaps=tuple(gaps))


def _read(outcome: Outcome, folder: Path, unit: Unit) -> tuple[dict[str, ClassMeasures], list[str]]:
    """Return what is known of each model of a unit; one without a file is empty, and keeps its place and colour."""
    by_group = {model.group: model.name for model in outcome.models if model.name in unit.models}
    found, gaps = {by_group.get(group, group): ClassMeasures() for group in groups(outcome)}, []
    hows = {one.measure: one.null.how for _, _, one in records(outcome, "neurons") if one.null}
    for name in unit.models:
        path = unit_folder(folder, unit) / "neurons" / "models" / name / "classes.csv"
        try:
            found[name] = class_measures(read_rows(path, folder), hows)
        except UserError as error:
            gaps.append(f"violins of {name}: {error}")
        except (KeyError, ValueError) as error:
            gaps.append(f"violins of {name}: {path.relative_to(folder)} is damaged ({error})")
    return found, gaps


def class_measures(rows: Sequence[Row], hows: dict[str, str]) -> ClassMeasures:
    """Return the measures that a table of classes holds.

    Args:
        rows: A row for each layer and class.
        hows: What the null of each measure is.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    classes = list(dict.fromkeys(row["class"] for row in rows))
    place = {(row["layer"], row["class"]): row for row in rows}
    names = [name for name in rows[0] if name in READABLE]

    def values(column: str) -> torch.Tensor:
        """Return a column as `(C, L)`."""
        return torch.tensor(
            [[_number(place[layer, name][column]) for layer in layers] for name in classes], dtype=torch.float64
        )

    by_name = {}
    for name in names:
        null = values(f"{name}_null") if f"{name}_null" in rows[0] else None
        if null is not None and len(null.unique()) == 1:
            null = null[0, 0]  # one number for all is drawn as a line
        by_name[name] = Measure(values(name), null, hows.get(name, PERMUTED))
    return ClassMeasures([_layer(name) for name in layers], len(classes), by_name)


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _layer(name: str) -> Layer:
    """Return the layer of a name such as `blocks.3.neurons`."""
    _, block, kinds = name.split(".")
    kind = kinds.removesuffix("s")
    if kind not in get_args(Kind):
        raise ValueError(f"there is no layer {name}")
    return Layer(int(block), cast(Kind, kind), 0, 0, 0, 0)


def _has(found: dict[str, ClassMeasures], kind: Kind) -> bool:
    return any(layer.kind == kind for one in found.values() for layer in one.layers)


def _plate(unit: Unit, found: dict[str, ClassMeasures], kind: Kind) -> Plate:
    figure = violins(cast(dict[str, Measures], _counted(found)), kind)  # reads only what ClassMeasures has
    name = f"violins-{unit.name.replace('/', '-')}-{kind}s"
    measures = ", ".join(READABLE[measure][0] for measure in SHOWN)
    picture = svg(figure, name, f"Violins of {kind}s by block and model: {measures}.")
    return Plate(
        name,
        picture,
        f"{kind.capitalize()}s, {unit.name}. {CAPTION}"
        if unit.name != "neurons"
        else f"{kind.capitalize()}s. {CAPTION}",
    )


def _counted(found: dict[str, ClassMeasures]) -> dict[str, ClassMeasures]:
    """Return the same with the number of classes everywhere: the figure asks the first model for it."""
    n = max(one.n_classes for one in found.values())
    return {name: ClassMeasures(one.layers, n, one.by_name) for name, one in found.items()}
