"""SAE features: what was measured of every dictionary, by model."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impact_lightning.neurons.look import INK, label
from impact_lightning.report.figures import Plate, colours, legend, plates, style, svg, tidy
from impact_lightning.report.section import Section
from impact_lightning.report.sources import records
from impact_lightning.report.words import interval, measure_name, number
from impact_lightning.results import Record
from impact_lightning.suite.outcome import Model, Outcome

SHOWN = (
    "ev", "loss_recovered", "l0", "dead", "purity", "label_entropy", "label_monosemanticity", "monosemanticity",
    "decoder_max_cosine",
)  # fmt: skip
COLUMNS = 3
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
CAPTION = (
    "Each point is one dictionary of one model, with its 95 % interval; the short line across it is its null. "
    "Below each: the share of zeros in the model's weights."
)
Found = Mapping[str, Sequence[tuple[Model, str, Record]]]  # by measure


def section(outcome: Outcome, folder: Path) -> Section:
    """Return the measures of all dictionaries by model.

    Args:
        outcome: What was found.
        folder: The folder of the run; nothing is read from it.
    """
    measured = list(records(outcome, "sae"))
    found = {name: own for name in SHOWN if (own := [one for one in measured if one[2].measure == name])}
    if not found:
        return Section("sae", "SAE features", plates(), gaps=("no dictionary was measured",))
    present = {model.name for several in found.values() for model, _, _ in several}
    without = [m.name for m in outcome.models if m.name not in present]
    gaps = (f"no dictionary was measured of {', '.join(without)}",) if without else ()
    return Section("sae", "SAE features", plates(_plate(outcome, found)), gaps=gaps)


def _plate(outcome: Outcome, found: Found) -> Plate:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = -(-len(found) // COLUMNS)
    dictionaries = list(dict.fromkeys(of for several in found.values() for _, of, _ in several))
    with style():
        figure = Figure(figsize=(9.0, 0.5 + 2.4 * rows), layout="constrained")
        panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
        for axes, (name, several) in zip(panels, found.items(), strict=False):
            _panel(axes, outcome.models, several, dictionaries, colours(outcome))
            axes.set_title(measure_name(name), fontsize=9.5, loc="left")
        for axes in panels[len(found) :]:
            axes.set_axis_off()
        marks = [
            Line2D([], [], color=INK, marker=MARKS[at % len(MARKS)], linestyle="", label=label(of, 40))
            for at, of in enumerate(dictionaries)
            if len(dictionaries) > 1
        ]
        legend(figure, colours(outcome), *marks)
    table = [
        [
            model.name,
            of,
            measure_name(name),
            number(one.value),
            _interval(one),
            number(one.null.value) if one.null else "none",
        ]
        for name, several in found.items()
        for model, of, one in several
    ]
    picture = svg(figure, "sae-measures", "Measures of SAE features by model; the numbers are in the table below.")
    return Plate(
        "sae-measures", picture, CAPTION, ("model", "dictionary", "measure", "value", "95 % interval", "null"), table
    )


def _interval(one: Record) -> str:
    return interval(one.interval.low, one.interval.high) if one.interval else "none"


def _panel(
    axes: Any,
    models: Sequence[Model],
    several: Sequence[tuple[Model, str, Record]],
    dictionaries: Sequence[str],
    colour: Mapping[str, str],
) -> None:
    """Draw a measure: models side by side, their dictionaries beside each other."""
    half = min(0.16, 0.22 / len(dictionaries))  # of the line of a null
    place = {model.name: at for at, model in enumerate(models)}
    for model, of, one in several:
        at = dictionaries.index(of)
        x = place[model.name] + 0.5 * ((at + 0.5) / len(dictionaries) - 0.5)
        if one.null and math.isfinite(one.null.value):
            axes.plot([x - half, x + half], [one.null.value] * 2, color=INK, linewidth=1.0)
        if one.interval:
            axes.plot([x, x], [one.interval.low, one.interval.high], color=colour[model.name], linewidth=1.6)
        axes.plot(x, one.value, MARKS[at % len(MARKS)], color=colour[model.name], markersize=5)
    zeros = [f"{100 * model.sparsity:.0f}%" if math.isfinite(model.sparsity) else "?" for model in models]
    axes.set_xticks(range(len(models)), zeros, fontsize=8)
    axes.set_xlim(-0.6, len(models) - 0.4)
    tidy(axes)
