"""Every measure by block, with intervals and nulls, and how far models differ from the first one, as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from impact_lightning.data.pictures import drawing
from impact_lightning.neurons.findings import Finding
from impact_lightning.neurons.layers import Kind
from impact_lightning.neurons.look import (
    GREY,
    INK,
    PALE,
    READABLE,
    blocks_of,
    colours,
    footer,
    label,
    readable,
    said_of_nulls,
)
from impact_lightning.neurons.measures import Measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Found = Mapping[tuple[str, int], Finding]  # by measure and block

COLUMNS = 4
DODGE = 0.5  # room on both sides of a block for the models that stand beside each other


By = Mapping[str, Sequence[Finding]]  # of each model


def draw_comparison(file: BinaryIO, measures: Mapping[str, Measures], levels: By, gaps: By, kind: Kind) -> None:
    """Write all measures of models by block, and their differences to the first of them, as PNG.

    Args:
        file: Where to.
        measures: What is known of each model; their order is that of the colours.
        levels: What was found of each model.
        gaps: How those after the first differ from it.
        kind: Whose layers.
    """
    with drawing():
        comparison(measures, levels, gaps, kind).savefig(file, format="png", dpi=110)


def comparison(measures: Mapping[str, Measures], levels: By, gaps: By, kind: Kind) -> "Figure":
    """Return the figure: of each measure a panel, and beneath it the differences if there are two models."""
    from matplotlib.figure import Figure

    blocks, shown = blocks_of(measures.values(), kind), _names(measures.values())
    levels_by_block = {model: _found(found, kind) for model, found in levels.items()}
    gaps_by_block = {model: _found(found, kind) for model, found in gaps.items()}
    columns = min(COLUMNS, len(shown))
    rows, each = -(-len(shown) // columns), 2 if gaps else 1
    with drawing():
        figure = Figure(figsize=(0.4 + 3.2 * columns, 0.9 + rows * (2.6 if gaps else 1.9)), layout="constrained")
        ratios = ([2, 1] if gaps else [1]) * rows
        grid = figure.subplots(each * rows, columns, sharex=True, squeeze=False, height_ratios=ratios)
        for place in range(rows * columns):
            panel = list(grid[each * (place // columns) :, place % columns][:each])
            if place < len(shown):
                _panel(panel, shown[place], levels_by_block, gaps_by_block, colours(list(measures)), blocks)
                if gaps and place % columns == 0:
                    panel[1].set_ylabel("difference", fontsize=7, color=GREY)
            else:
                for axes in panel:
                    axes.set_axis_off()
        _legend(figure, list(measures), kind)
        footer(figure, _small_print(measures, shown))
    return figure


def _names(measures: Iterable[Measures]) -> list[str]:
    """Return the names of measures of any model: known ones in the order of their table, then others."""
    names = dict.fromkeys(name for one in measures for name in one.by_name)
    known = list(READABLE)
    return sorted(names, key=lambda name: known.index(name) if name in READABLE else len(known))


def _found(found: Iterable[Finding], kind: Kind) -> Found:
    """Return what was found of the layers of a kind."""
    by_place = {}
    for one in found:
        head, _, of = one.of.rpartition(".")
        if head and of == f"{kind}s":
            by_place[one.measure, int(head.removeprefix("blocks."))] = one
    return by_place


def _panel(
    panel: Sequence[Any],
    name: str,
    levels: Mapping[str, Found],
    gaps: Mapping[str, Found],
    colour: Mapping[str, str],
    blocks: Sequence[int],
) -> None:
    """Draw a measure, and its differences beneath."""
    title, meaning = readable(name)
    panel[0].set_title(title, loc="left", fontsize=9.5, color=INK, pad=13)
    below = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 7, "color": GREY}
    panel[0].annotate(meaning, (0, 1), (0, 4), **below)
    dodge = DODGE if len(blocks) == 1 else 0.0  # intervals of a single block would hide each other
    for place, (model, found) in enumerate(levels.items()):
        _level(panel[0], name, found, colour[model], blocks, _offset(place, len(levels), dodge))
    for place, (model, found) in enumerate(gaps.items()):
        _gap(panel[1], name, found, colour[model], blocks, _offset(place, len(gaps), DODGE))
    if gaps:
        panel[1].axhline(0, color=INK, linewidth=0.8, zorder=1)
    for axes in panel:
        _tidy(axes, blocks)
    panel[-1].tick_params(labelbottom=True)
    panel[-1].set_xlabel("block", fontsize=7.5, labelpad=1)


def _offset(place: int, n: int, room: float) -> float:
    """Return how far from its block a model is drawn, of n that share some room."""
    return room * ((place + 0.5) / n - 0.5)


def _level(axes: Any, name: str, found: Found, colour: str, blocks: Sequence[int], offset: float) -> None:
    """Draw the means of a model over its layers, with their intervals and nulls."""
    value, low, high, null = _columns(name, found, blocks)
    x, is_alone = np.array(blocks) + offset, _alone(~np.isnan(value))
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    axes.vlines(x[is_alone], low[is_alone], high[is_alone], color=colour, alpha=0.5, linewidth=3)  # a band has no width
    axes.plot(x, null, color=colour, linewidth=1, linestyle=(0, (3, 2)), alpha=0.9, label="null")
    is_alone = _alone(~np.isnan(null))
    axes.plot(x[is_alone], null[is_alone], color=colour, marker="_", linestyle="none", markersize=9)
    axes.plot(x, value, color=colour, linewidth=1.4, marker="o", markersize=2.8, label="value")


def _gap(axes: Any, name: str, found: Found, colour: str, blocks: Sequence[int], offset: float) -> None:
    """Draw how far a model is from the first one, block by block."""
    value, low, high, _ = _columns(name, found, blocks)
    x = np.array(blocks) + offset
    axes.vlines(x, low, high, color=colour, linewidth=1.2)
    axes.plot(x, value, color=colour, marker="o", markersize=2.8, linestyle="none", label="difference")


def _columns(name: str, found: Found, blocks: Sequence[int]) -> tuple[Floats, Floats, Floats, Floats]:
    """Return value, ends of the interval, and null of each block; nan where there is none."""
    table = np.full((4, len(blocks)), np.nan)
    for column, block in enumerate(blocks):
        if one := found.get((name, block)):
            chance = np.nan if one.null is None else one.null.value
            table[:, column] = one.value, one.interval.low, one.interval.high, chance
    table[np.isinf(table)] = np.nan  # d′ of a unit that has no spread; an axis has no place for it
    return table[0], table[1], table[2], table[3]


def _alone(is_defined: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which points are defined but have no defined neighbour."""
    beside = np.pad(is_defined, 1)
    return is_defined & ~beside[:-2] & ~beside[2:]


def _tidy(axes: Any, blocks: Sequence[int]) -> None:
    """Give an axis few ticks and a range that holds what was drawn, or say that there is nothing."""
    from matplotlib.ticker import MaxNLocator

    drawn = [line.get_ydata() for line in axes.lines if line.get_label() in ("value", "difference")]
    axes.margins(y=0.12)
    low, high = axes.get_ylim()
    if high - low < 1e-9:  # rounding is no difference
        axes.set_ylim(low - 0.05, high + 0.05)
    if np.isfinite(np.concatenate(drawn)).any():
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="y", useOffset=False)  # entropies differ in their last digits
    else:
        axes.text(0.5, 0.6, "undefined", transform=axes.transAxes, ha="center", fontsize=7, color=GREY)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    axes.set_xlim(blocks[0] - 0.5, blocks[-1] + 0.5)
    axes.set_xticks(blocks)
    axes.tick_params(labelsize=7, length=2)
    axes.grid(axis="y", color=PALE, linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: "Figure", names: Sequence[str], kind: Kind) -> None:
    from matplotlib.lines import Line2D

    shown = [
        Line2D([], [], color=shade, linewidth=2, marker="o", markersize=4, label=label(name))
        for name, shade in colours(names).items()
    ]
    shown.append(Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (3, 2)), label="null, in the model's colour"))
    title = f"{kind}s, mean over each layer"
    figure.legend(
        handles=shown, loc="outside upper left", ncols=7, frameon=False, title=title, alignment="left", fontsize=9
    )


def _small_print(measures: Mapping[str, Measures], shown: Sequence[str]) -> str:
    """Return what lines, bands and bars are."""
    base, *others = measures
    lines = [
        "Bands: 95 % bootstrap intervals over classes; they say nothing of other training seeds.",
        f"Dashed: the null ({said_of_nulls(measures, shown)}); where there is none, labels have no part.",
    ]
    if others:
        lines.append(
            f"Differences: model − {label(base)}, each less its own null, over the same draws of classes; "
            "bars are their 95 % bootstrap intervals."
        )
    return "\n".join(lines)
