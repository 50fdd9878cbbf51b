"""Circuits: how many nodes and edges each model needs for a task at the same loss."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from impact_lightning.neurons.look import label
from impact_lightning.report.figures import Plate, colours, legend, plates, style, svg, tidy
from impact_lightning.report.section import Section, render
from impact_lightning.report.sources import records
from impact_lightning.report.words import interval, measure_name, number, several
from impact_lightning.suite.outcome import Entry, Outcome

SHOWN = ("nodes", "edges", "edges_over_density")
NONE = ("no size reaches the target", "constants reach the target", "the model cannot do it", "too few images to tell")
CAPTION = (
    "Each point is the circuit of one task, model and seed, at the same loss for all models of a task; the axis is "
    "logarithmic. A line joins the smallest and the largest over seeds. Hollow points are no circuits (see the verdict "
    "in the table) and are left out of all means. Fewer nodes and edges are easier to understand; edges divided by the "
    "density of weights say whether there are fewer than zeros in the weights alone would make."
)
MEANS = (
    "Geometric means over tasks, and how many times as large they are as those of the reference. The null of edges is "
    "the ratio of densities: so many edges are expected where nodes are chosen without regard to weights."
)


class Size(NamedTuple):
    """A size of a circuit."""

    model: str
    task: str
    seed: str
    measure: str
    value: float
    verdict: str

    @property
    def is_circuit(self) -> bool:
        """Whether its size means something."""
        return not self.verdict.startswith(NONE)


def section(outcome: Outcome, folder: Path) -> Section:
    """Return the sizes of all circuits.

    Args:
        outcome: What was found.
        folder: The folder of the run; nothing is read from it.
    """
    title = "Circuits: nodes and edges at the same loss"
    found = sizes(outcome)
    if not found:
        return Section("circuit-sizes", title, plates(), gaps=("no circuit was measured",))
    present = {one.model for one in found}
    without = [model.name for model in outcome.models if model.name not in present]
    gaps = (f"no circuit was measured of {', '.join(without)}",) if without else ()
    return Section("circuit-sizes", title, plates(_plate(outcome, found), *_means(outcome)), gaps=gaps)


def sizes(outcome: Outcome) -> list[Size]:
    """Return the size of every circuit."""
    found = []
    for model, of, one in records(outcome, "circuits"):
        task, slash, seed = of.rpartition("/seed ")
        if slash and one.measure in SHOWN:
            found.append(Size(model.name, task, seed, one.measure, one.value, one.notes[0] if one.notes else ""))
    return found


def _plate(outcome: Outcome, found: Sequence[Size]) -> Plate:
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(one.task for one in found))
    models = [m.name for m in outcome.models if any(one.model == m.name for one in found)]
    height = 1.0 + 0.17 * len(tasks) * (len(models) + 1)
    with style():
        figure = Figure(figsize=(9.0, max(2.4, height)), layout="constrained")
        row = figure.subplots(1, len(SHOWN), sharey=True)
        for axes, name in zip(row, SHOWN, strict=True):
            _panel(axes, [one for one in found if one.measure == name], tasks, models, colours(outcome))
            axes.set_title(measure_name(name), fontsize=9.5, loc="left")
        middle = (len(models) - 1) / 2
        ticks = [at * (len(models) + 1) + middle for at in range(len(tasks))]
        row[0].set_yticks(ticks, [label(task) for task in tasks])
        row[0].set_ylim(len(tasks) * (len(models) + 1) - 1, -1)
        legend(figure, {name: colours(outcome)[name] for name in models})
    picture = svg(
        figure, "circuit-points", "Nodes and edges of circuits by task and model; the numbers are in the table below."
    )
    return Plate(
        "circuit-points",
        picture,
        CAPTION,
        ("model", "task", "seed", *map(measure_name, SHOWN), "verdict"),
        _rows(found),
    )


def _rows(found: Sequence[Size]) -> list[list[str]]:
    rows: dict[tuple[str, str, str], dict[str, Size]] = {}
    for one in found:
        rows.setdefault((one.model, one.task, one.seed), {})[one.measure] = one
    return [
        [
            *key,
            *(number(own[name].value) if name in own else "not measured" for name in SHOWN),
            next(iter(own.values())).verdict,
        ]
        for key, own in rows.items()
    ]


def _panel(
    axes: Any, found: Sequence[Size], tasks: Sequence[str], models: Sequence[str], colour: Mapping[str, str]
) -> None:
    """Draw a size: tasks above each other, in each of them the models."""
    by_place: dict[float, list[Size]] = {}
    for one in found:
        by_place.setdefault(tasks.index(one.task) * (len(models) + 1) + models.index(one.model), []).append(one)
    for y, several_ in by_place.items():
        values = [max(1.0, one.value) for one in several_ if math.isfinite(one.value)]  # a circuit may have no edge
        shade = colour[several_[0].model]
        if values:
            axes.plot([min(values), max(values)], [y, y], color=shade, linewidth=1.2, alpha=0.6)
        for one in several_:
            face = shade if one.is_circuit else "white"
            axes.plot(max(1.0, one.value), y, "o", color=shade, markerfacecolor=face, markersize=4.5)
    _log_axis(axes)
    tidy(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#c4c4c4", linewidth=0.4, alpha=0.6)
    axes.tick_params(axis="y", length=0)


def _log_axis(axes: Any) -> None:
    """Label a logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 60 * low else (1.0,)  # of each decade: few decades need more
    is_short = high < 8 * low
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]) if is_short else LogLocator(10, subs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _means(outcome: Outcome) -> list[Plate]:
    """Return the table of means over tasks; nothing where there are none."""
    wanted = [f"{name}_{kind}" for kind in ("geometric_mean", "ratio") for name in SHOWN]
    rows = [
        [measure_name(name.removesuffix("_ratio").removesuffix("_geometric_mean")), *_mean_row(entry)]
        for name in wanted
        for entry in outcome.entries
        if entry.level == "circuits" and entry.record.measure == name
    ]
    if not rows:
        return []
    head = ("size", "of", "value", "95 % interval", "null", "tasks", "notes")
    return [Plate("circuit-means", render("only_table.html", head=head, rows=rows, caption="Means over tasks"), MEANS)]


def _mean_row(entry: Entry) -> list[str]:
    one = entry.record
    is_ratio = one.measure.endswith("_ratio")
    return [
        one.of,
        f"×\u00a0{number(one.value)}" if is_ratio else number(one.value),
        interval(one.interval.low, one.interval.high) if one.interval else "none",
        number(one.null.value) if one.null else "none",
        several(one.n, "task"),
        "; ".join(one.notes),
    ]
