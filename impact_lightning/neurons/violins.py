"""Four measures of every block and model as violins over classes, each beside its null."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from impact_lightning.data.pictures import drawing
from impact_lightning.neurons.layers import Kind
from impact_lightning.neurons.look import GREY, INK, PALE, blocks_of, colours, footer, label, readable, said_of_nulls
from impact_lightning.neurons.measures import Measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Range = tuple[float, float]

SHOWN = ("ablation_impact", "selectivity", "class_variance", "label_entropy")  # figure 2 of arXiv 2603.15919
FEW = 20  # classes whose points are drawn one by one
FENCE = 1.5  # spans beyond the middle nine tenths of a violin, where its far outliers begin
BEYOND = "beyond"  # marks what is written about values that have no place on the axis
SLOT = 0.86  # share of a model's room that its violin takes


# ----------------------------------------------------------------------------------------------------- what is drawn


class Cell(NamedTuple):
    """What a violin shows: a measure of one layer of one model."""

    values: Floats  # defined ones, of classes
    null: Floats  # theirs where there is nothing to find; one number if it is the same for all, none if there is none


def cells(measures: Measures, name: str, kind: Kind) -> dict[int, Cell]:
    """Return what is known of a measure by block; nothing if it was not measured, or not of classes."""
    measure = measures.by_name.get(name)
    if measure is None or measure.is_of_units:
        return {}
    found = {}
    for place, layer in enumerate(measures.layers):
        if layer.kind == kind:
            values, null = measure.values[:, place].numpy(), np.empty(0)
            is_defined = ~np.isnan(values)
            if measure.null is not None:
                null = measure.null.expand_as(measure.values)[:, place].numpy()[is_defined]
                null = null[~np.isnan(null)]
            if measure.null is not None and measure.null.ndim == 0:
                null = null[:1]
            found[layer.block] = Cell(values[is_defined], null)
    return found


def limits(several: Iterable[Floats]) -> Range:
    """Return the range of an axis on which all values have a place, but for far outliers of each of the groups."""
    lows, highs = [], []
    for values in several:
        if len(values):
            low, high = np.quantile(values, [0.05, 0.95])
            far = FENCE * (high - low)
            near = values[(values >= low - far) & (values <= high + far)]
            lows.append(near.min())
            highs.append(near.max())
    low, high = (min(lows), max(highs)) if lows else (0.0, 1.0)
    room = 0.04 * (high - low) or 0.04 * abs(high) or 0.5
    return float(low - room), float(high + room)


def is_spread(values: Floats) -> bool:
    """Return whether values have a density; equal ones have none, whatever their last digits."""
    return len(values) > 1 and float(np.ptp(values)) > 1e-9 * float(np.abs(values).max())


# ---------------------------------------------------------------------------------------------------------- violins


def draw_violins(file: BinaryIO, measures: Mapping[str, Measures], kind: Kind) -> None:
    """Write the distributions over classes of the four measures by block and model, beside their nulls, as PNG.

    Args:
        file: Where to.
        measures: What is known of each model; their order is that of the colours.
        kind: Whose layers.
    """
    with drawing():
        violins(measures, kind).savefig(file, format="png", dpi=110)


def violins(measures: Mapping[str, Measures], kind: Kind) -> "Figure":
    """Return the figure: a row for each measure, a column for each block."""
    from matplotlib.figure import Figure

    blocks = blocks_of(measures.values(), kind)
    width = 1.3 + len(blocks) * max(1.05, 0.35 + 0.27 * len(measures))
    with drawing():
        figure = Figure(figsize=(max(width, 5.5), 8.6), layout="constrained")
        grid = figure.subplots(len(SHOWN), len(blocks), sharex=True, sharey="row", squeeze=False)
        for row, name in zip(grid, SHOWN, strict=True):
            _row(row, blocks, {model: cells(one, name, kind) for model, one in measures.items()})
            row[0].set_ylabel("\n".join(readable(name)))
        for axes, block in zip(grid[0], blocks, strict=True):
            axes.set_title(f"block {block}", fontsize=9)
        _legend(figure, measures, kind)
        n_classes = next(iter(measures.values())).n_classes
        cut = any(text.get_gid() == BEYOND for axes in grid.flat for text in axes.texts)
        footer(
            figure,
            f"A violin is the distribution over {n_classes:,} classes; those without a value are left out."
            f"{' ▲▼: so many lie beyond the axis.' if cut else ''}\nNull: {said_of_nulls(measures, SHOWN)}.",
        )
    return figure


def _row(row: Sequence[Any], blocks: Sequence[int], by_model: Mapping[str, Mapping[int, Cell]]) -> None:
    """Draw a measure: its violins, with a common axis."""
    colour, drawn = colours(list(by_model)), [cell for found in by_model.values() for cell in found.values()]
    within = limits([part for cell in drawn for part in cell])
    for axes, block in zip(row, blocks, strict=True):
        for slot, (model, found) in enumerate(by_model.items()):
            if block in found:
                _violin(axes, slot, found[block], colour[model], within)
        axes.set(xlim=(-0.6, len(by_model) - 0.4), ylim=within, xticks=[])
        axes.grid(axis="y", color=PALE, linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.ticklabel_format(axis="y", useOffset=False)  # entropies differ in their last digits
        axes.tick_params(axis="y", length=2 if axes is row[0] else 0)


def _violin(axes: Any, slot: int, cell: Cell, colour: str, within: Range) -> None:
    """Draw one model in its place: values to the right of their null, or all over it if that is a number."""
    if not len(cell.values):
        axes.text(
            slot, 0.5, "undefined", transform=axes.get_xaxis_transform(), rotation=90, ha="center", va="center",
            fontsize=7, color=GREY,
        )  # fmt: skip
        return
    has_half = len(cell.null) > 1
    if has_half:
        _body(axes, slot, cell.null, PALE, "low", within)
    _body(axes, slot, cell.values, colour, "high" if has_half else "both", within)
    if len(cell.null) == 1:
        ends = slot - 0.5, slot + 0.5
        axes.plot(ends, [cell.null[0]] * 2, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=4, label="null")
    if len(cell.values) <= FEW:
        x = np.full(len(cell.values), slot + (0.1 if has_half else 0.0))
        look = {"s": 9, "facecolors": "white", "edgecolors": INK, "linewidths": 0.6, "zorder": 5}  # seen on any colour
        axes.scatter(x, cell.values, label="points", **look)
    _beyond(axes, slot, cell.values, within)


def _body(axes: Any, slot: int, values: Floats, colour: str, side: str, within: Range) -> None:
    """Draw a density and its median; a dash where all values are the same."""
    half, middle = SLOT / 2, float(np.median(values))
    ends = slot - half * (side != "high"), slot + half * (side != "low")
    inside = values[(values >= within[0]) & (values <= within[1])]
    if not is_spread(inside):
        axes.plot(ends, [middle] * 2, color=colour, linewidth=4, solid_capstyle="butt", label="constant")
        return
    parts = axes.violinplot([inside], [slot], widths=SLOT, showextrema=False, side=side)
    parts["bodies"][0].set(facecolor=colour, edgecolor=colour, linewidth=0.6, alpha=0.7)
    axes.plot(ends, [middle] * 2, color="white", linewidth=2.4, solid_capstyle="butt", zorder=4)  # a rim
    axes.plot(ends, [middle] * 2, color=GREY if side == "low" else INK, linewidth=1.1, zorder=4, label="median")


def _beyond(axes: Any, slot: int, values: Floats, within: Range) -> None:
    """Count what has no place on the axis, at its ends."""
    above, below = int((values > within[1]).sum()), int((values < within[0]).sum())
    for n, y, va, sign in ((above, 1, "top", "▲"), (below, 0, "bottom", "▼")):
        if n:
            text = f"{sign}\n{n}" if va == "top" else f"{n}\n{sign}"
            place = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": va, "gid": BEYOND}
            axes.text(slot, y, text, color=INK, fontsize=6.5, linespacing=0.9, **place)


def _legend(figure: "Figure", measures: Mapping[str, Measures], kind: Kind) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown: list[Any] = [Patch(color=shade, label=label(name)) for name, shade in colours(list(measures)).items()]
    shown += [
        Patch(color=PALE, label="null, left half"),
        Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (3, 2)), label="null, one number for all"),
        Line2D([], [], color=INK, linewidth=1.1, label="median"),
    ]
    letters = sum(len(handle.get_label()) + 7 for handle in shown)
    columns = max(2, min(len(shown), int(figure.get_figwidth() * 13 * len(shown) / letters)))
    figure.legend(
        handles=shown,
        loc="outside upper left",
        ncols=columns,
        frameon=False,
        title=f"{kind}s, by block",
        alignment="left",
    )
