"""The units of a model in files: a table of units, a table of classes, and everything else in safetensors."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from impact_lightning.files import atomic_write, write_csv
from impact_lightning.neurons.measures import Measures
from impact_lightning.results import Constant

Cell = str | int | float | None


def write_units(folder: Path, measures: Measures, class_names: Sequence[str], protocol: dict[str, Constant]) -> None:
    """Write `units.csv`, `classes.csv` and `units.safetensors`.

    Args:
        folder: Where they go.
        measures: What is known of the units.
        class_names: Names of the classes.
        protocol: The constants under which it was measured.
    """
    write_csv(folder / "units.csv", unit_rows(measures, class_names))
    write_csv(folder / "classes.csv", class_rows(measures, class_names))
    about = {
        "layers": json.dumps([str(layer) for layer in measures.layers]),
        "first_units": json.dumps([layer.units for layer in measures.layers]),
        "classes": json.dumps(list(class_names)),
        "protocol": json.dumps(protocol),
    }
    with atomic_write(folder / "units.safetensors") as file:
        file.write(save(_tensors(measures), metadata=about))


def unit_rows(measures: Measures, class_names: Sequence[str]) -> Iterator[list[Cell]]:
    """Yield a heading, and a row for each unit: its classes, its measures, and how far bins may have put them off."""
    of_units = {name: measure for name, measure in measures.by_name.items() if measure.is_of_units}
    errors = {f"{name}_error": measure.error for name, measure in of_units.items() if measure.error is not None}
    yield ["layer", "unit", "preferred_class", "auroc_class", *of_units, *errors]
    columns = torch.stack([*(measure.values for measure in of_units.values()), *errors.values()], 1)
    best = measures.auroc.auroc.nan_to_num(-1.0).argmax(0)  # (K,) may be another class than that of the largest mean
    best[measures.by_name["auroc_best"].values.isnan()] = -1
    classes = [*class_names, None]  # the last one is that of -1
    for layer in measures.layers:
        units = measures.preferred[layer.of_units], best[layer.of_units], columns[layer.of_units]
        for number, (own, top, row) in enumerate(zip(*(part.tolist() for part in units), strict=True)):
            yield [str(layer), number, classes[own], classes[top], *map(_cell, row)]


def class_rows(measures: Measures, class_names: Sequence[str]) -> Iterator[list[Cell]]:
    """Yield a heading, and a row for each class and layer: its measures with their nulls, and its own units."""
    chosen = {name: measure for name, measure in measures.by_name.items() if not measure.is_of_units}
    nulls = [f"{name}_null" for name, measure in chosen.items() if measure.null is not None]
    yield ["layer", "class", "images", *chosen, *nulls, "own_units"]
    parts = [measure.values for measure in chosen.values()]
    parts += [m.null.expand_as(m.values) for m in chosen.values() if m.null is not None]
    columns = torch.stack(parts, 2)  # (C, L, measures)
    for place, (layer, own) in enumerate(zip(measures.layers, measures.own, strict=True)):
        for label, name in enumerate(class_names):
            units = " ".join(str(unit) for unit in own[label].tolist() if unit >= 0)
            row = map(_cell, columns[label, place].tolist())
            yield [str(layer), name, int(measures.auroc.images[label]), *row, units]


def _tensors(measures: Measures) -> dict[str, Tensor]:
    """Return everything by name: tables `(C, K)` in float32, measures and nulls as they are."""
    found = {
        "auroc": measures.auroc.auroc.float(),
        "attribution": measures.scores,
        "preferred": measures.preferred,
        "null_units": measures.null_units,
        "top_images": measures.top.images,
        "top_values": measures.top.values,
    }
    for layer, own in zip(measures.layers, measures.own, strict=True):
        found[f"own/{layer}"] = own
    for name, measure in measures.by_name.items():
        found[f"measure/{name}"] = measure.values
        if measure.null is not None:
            found[f"null/{name}"] = measure.null
        if measure.error is not None:
            found[f"error/{name}"] = measure.error
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _cell(value: float) -> float | None:
    """Return a number as it is written, with six digits; nothing for nan."""
    return None if math.isnan(value) else float(f"{value:.6g}")
