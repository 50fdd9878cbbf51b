"""Attribution: curves of insertion and deletion by model, and maps of the same images beside each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from torch import Tensor

from impact_lightning.attribution.findings import BASELINE
from impact_lightning.attribution.pictures import BASELINES, UNDRAWN, overlay
from impact_lightning.data.pictures import RGB
from impact_lightning.data.thumbnail_file import FILE as THUMBNAILS
from impact_lightning.data.thumbnail_file import read_thumbnails
from impact_lightning.report.figures import Plate, colours, jpeg, legend, plates, style, svg, tidy
from impact_lightning.report.section import Section, render
from impact_lightning.report.sources import read_tensors, tests, undone, unit_folder
from impact_lightning.report.sprites import short
from impact_lightning.report.words import several
from impact_lightning.suite.outcome import Outcome, Unit
from impact_lightning.types import UserError

MOST_IMAGES = 12
FRACTIONS = "fractions"
FIRST = "transformer_attribution"  # the method of the paper is shown first where it was measured
PAPER = ("insertion", "deletion")
WORDS = {
    "insertion": "insertion: higher is better",
    "deletion": "deletion: lower is better",
    "morf": "most relevant first: lower is better",
    "lerf": "least relevant first: higher is better",
    "positive": "most relevant first, accuracy: lower is better",
    "negative": "least relevant first, accuracy: higher is better",
}
CURVES = (
    "Mean score while patches or pixels are removed or come back in the order of {method}. Solid: this method on each "
    "model, with a band of two standard errors over images; dashed: a random map of the same model, which is the null."
)
AS_ABOVE = "The same in the order of {method}."
GRID = (
    "The same images explained by {method}, one column for each model. Red patches speak for the class that is "
    "explained, blue ones against it; colours reach to the largest value of each map and do not compare between maps."
)


class Seen(NamedTuple):
    """An image of the test split."""

    name: str
    picture: RGB


class Files(NamedTuple):
    """What is known of the maps of one model; a part that could not be read is empty."""

    curves: dict[str, Tensor]
    maps: dict[str, Tensor]
    seen: dict[int, Seen]  # by row


def section(outcome: Outcome, folder: Path) -> Section:
    """Return the curves and maps of every unit of work that tested attribution.

    Args:
        outcome: What was found.
        folder: The folder of the run.
    """
    shown, gaps = [], list[str]()
    for unit in tests(outcome, "attribution"):
        if unit.state != "done":
            gaps.append(undone(unit))
            continue
        found = {}
        for name in unit.models:
            found[name], missing = _read(folder, unit, name)
            gaps += missing
        at = unit.name.replace("/", "-")
        shown += _curve_plates(outcome, found, at)
        shown += _grid_plates(found, at)
    if not shown and not gaps:
        gaps.append("the level of attribution was not tested")
    return Section("attribution", "Attribution maps", _html(shown), gaps=tuple(gaps))


def _html(shown: Sequence[Plate]) -> Markup:
    """Return the figures of the first method, and those of all others folded away."""
    first = [plate for plate in shown if not plate.name.startswith("more-")]
    more = [plate for plate in shown if plate.name.startswith("more-")]
    return render(
        "attribution.html",
        first=plates(*first),
        more=plates(*more) if more else "",
        n=several(len(more), "other method"),
    )


def _read(folder: Path, unit: Unit, model: str) -> tuple[Files, list[str]]:
    """Return what can be read of a model's files, and what cannot."""
    place, gaps = unit_folder(folder, unit) / "attribution" / model, []
    parts: dict[str, dict[str, Tensor]] = {"curves": {}, "maps": {}}
    for name in parts:
        try:
            parts[name] = read_tensors(place / f"{name}.safetensors", folder)
        except UserError as error:
            gaps.append(f"{name} of {model}: {error}")
    seen: dict[int, Seen] = {}
    try:
        found = read_thumbnails(place / THUMBNAILS)
        each = zip(found.rows.tolist(), found.names, found.images.numpy(), strict=True)
        seen = {row: Seen(short(name) or f"image {row}", picture) for row, name, picture in each}
    except UserError as error:
        gaps.append(f"images of {model}: {error}".replace(f"{folder}/", ""))
    return Files(parts["curves"], parts["maps"], seen), gaps


# --------------------------------------------------------------------------------------------------------------- curves


def _methods(keys: Sequence[str], place: int) -> list[str]:
    """Return the methods that keys name at a place, the one of the paper first, baselines left out."""
    names = dict.fromkeys(key.split("/", 2)[place] for key in keys if "/" in key)
    found = [name for name in names if name not in (*BASELINES, FRACTIONS)]
    return sorted(found, key=lambda name: name != FIRST)  # stable


def _curve_plates(outcome: Outcome, found: Mapping[str, Files], at: str) -> list[Plate]:
    methods = _methods([key for files in found.values() for key in files.curves], 0)
    made = []
    for place, method in enumerate(methods):
        name = f"{'more-' if place else ''}curves-{at}-{method}"
        if figure := _curves(found, method, colours(outcome), is_whole=not place):
            said = f"Curves of {method} by model; the areas below them are in the tables of the run."
            caption = (CURVES if not place else AS_ABOVE).format(method=method.replace("_", " "))
            made.append(Plate(name, svg(figure, name, said), caption))
    return made


def _curves(found: Mapping[str, Files], method: str, colour: Mapping[str, str], *, is_whole: bool) -> Any:
    """Return the figure of a method, a panel for each curve of each protocol; None where nothing was measured."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    fields = _fields(found, method, is_whole=is_whole)
    if not fields:
        return None
    columns = min(3, len(fields))
    rows = -(-len(fields) // columns)
    with style():
        figure = Figure(figsize=(3.0 * columns, 2.5 * rows + 0.5), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, field in zip(panels, fields, strict=False):
            protocol, _, curve = field.rpartition("/")
            for model, files in found.items():
                _draw(axes, files.curves, method, field, colour[model])
            axes.set_title(f"{protocol}\n{WORDS.get(curve, curve)}", fontsize=8, loc="left")
            axes.set_xlabel("% changed", fontsize=8)
            tidy(axes)
        for axes in panels[len(fields) :]:
            axes.set_axis_off()
        random = Line2D([], [], color="#666666", linewidth=1.0, linestyle="--", label="random maps")
        legend(figure, {name: colour[name] for name in found}, random, marker="", line="-")
    return figure


def _fields(found: Mapping[str, Files], method: str, *, is_whole: bool) -> list[str]:
    """Return the curves of a method as `protocol/curve`, those of the paper first; of most methods only these two."""
    keys = [key.split("/", 1)[1] for files in found.values() for key in files.curves if key.startswith(f"{method}/")]
    curves = {field: field.rpartition("/")[2] for field in keys}
    order = {curve: place for place, curve in enumerate(WORDS)}
    fields = [field for field, curve in curves.items() if curve not in UNDRAWN]
    fields.sort(key=lambda field: order.get(curves[field], len(order)))
    if is_whole:
        return fields
    return [field for field in fields if curves[field] in PAPER] or fields[:2]  # there may be a dozen methods


def _draw(axes: Any, curves: Mapping[str, Tensor], method: str, field: str, colour: str) -> None:
    """Draw the curve of a model, and that of random maps."""
    x = curves.get(f"{FRACTIONS}/{field}")
    mine, random = curves.get(f"{method}/{field}"), curves.get(f"{BASELINE}/{field}")
    if x is None:
        return
    if random is not None and len(random):
        axes.plot(100 * x, random.double().mean(0), color=colour, linewidth=1.0, linestyle="--", alpha=0.7)
    if mine is None or not len(mine):
        return
    mean = mine.double().mean(0)
    axes.plot(100 * x, mean, color=colour, linewidth=1.5)
    if len(mine) > 1:
        half = 2 * mine.double().std(0) / len(mine) ** 0.5
        axes.fill_between(100 * x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


# ----------------------------------------------------------------------------------------------------------------- maps


def _grid_plates(found: Mapping[str, Files], at: str) -> list[Plate]:
    """Return the grid of the first method: its images that have a picture, and the map of each model."""
    methods = _methods([key for files in found.values() for key in files.maps], 1)
    seen: dict[int, Seen] = {}
    for files in found.values():
        seen = files.seen | seen
    if not methods or not seen:
        return []
    method = methods[0]
    rows = [row for row in sorted(seen) if any(f"{row}/{method}" in files.maps for files in found.values())]
    lines = []
    for row in rows[:MOST_IMAGES]:
        name, picture = seen[row]
        lines.append((name, jpeg(picture), [(m, _picture(files, row, method, picture)) for m, files in found.items()]))
    html = render("map_grid.html", models=list(found), lines=lines)
    return [Plate(f"grid-{at}", html, GRID.format(method=method.replace("_", " ")))] if lines else []


def _picture(files: Files, row: int, method: str, picture: RGB) -> str:
    """Return the map of an image as an address that holds it; empty where there is none."""
    relevance = files.maps.get(f"{row}/{method}")
    if relevance is None:
        return ""
    return jpeg(
        (overlay(picture, relevance.float().nan_to_num(0.0).numpy()) * 255).round().clip(0, 255).astype(np.uint8)
    )
