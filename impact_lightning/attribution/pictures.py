"""Pictures of maps: images with what every method says of them, and the mean curves of every method."""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from impact_lightning.attribution.findings import BASELINE
from impact_lightning.attribution.study import CurveKey, Example
from impact_lightning.data.pictures import RGB, drawing

CELL = 1.25  # inches of a picture in the gallery
RUN = "#8a8a8a"  # curves that are there for comparison
BASELINES = (BASELINE, "centre")
GREY = 7  # place of a colour like it in tab10
UNDRAWN = ("groups", "random")  # no curve, but a point for each group; the same for every method
LINES = ("-", "--", ":", "-.")  # with the colours, so that no two methods look alike


def overlay(picture: RGB, relevance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a picture `(h, w, 3)` from 0 to 1 in grey, coloured by a map `(gh, gw)`: blue says against, red for.

    The colours of each map reach to its own largest magnitude: maps have no common unit.
    """
    h, w = picture.shape[:2]
    rows, columns = (np.arange(n) * relevance.shape[side] // n for side, n in enumerate((h, w)))
    largest = np.abs(relevance).max() or 1.0
    value = (relevance / largest)[rows[:, None], columns]  # (h, w) from -1 to 1
    grey = np.repeat(picture.mean(2, keepdims=True) / 255, 3, axis=2) * 0.6 + 0.4
    colour = np.where(value[..., None] >= 0, [0.80, 0.20, 0.05], [0.10, 0.35, 0.80])
    share = np.abs(value)[..., None] * 0.75
    mixed: NDArray[np.float32] = ((1 - share) * grey + share * colour).astype(np.float32)
    return mixed


def draw_gallery(
    file: BinaryIO, model: str, examples: Sequence[Example], pictures: Mapping[int, RGB], names: Sequence[str]
) -> None:
    """Draw a row for each image, and in it a picture for each method."""
    from matplotlib.figure import Figure

    shown = [example for example in examples if example.row in pictures]
    methods = list(shown[0].maps) if shown else []
    with drawing():
        size = (CELL * max(4, 1 + len(methods)), (CELL + 0.28) * max(1, len(shown)) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(f"{model}: patches that speak for the class (red) and against it (blue)", fontsize=10)
        axes = figure.subplots(max(1, len(shown)), 1 + len(methods), squeeze=False)
        for place, method in enumerate(methods, 1):
            axes[0, place].set_title(_shortened(method.replace("_", " "), 24), fontsize=6, parse_math=False)
        for row, example in zip(axes, shown, strict=False):
            row[0].imshow(pictures[example.row])
            row[0].set_title(_said(example, names), fontsize=6, loc="left", parse_math=False)
            for axis, method in zip(row[1:], methods, strict=True):
                axis.imshow(overlay(pictures[example.row], example.maps[method].numpy()))
        for axis in axes.flat:
            axis.set_axis_off()
        figure.savefig(file, format="png", dpi=150)


def _said(example: Example, names: Sequence[str]) -> str:
    """Return which class is explained, and below it which one it is, if another."""
    explained = f"{_shortened(names[example.target], 16)} {example.probability:.0%}"
    return explained if example.label == example.target else f"{explained}\nis {_shortened(names[example.label], 18)}"


def _shortened(text: str, n: int) -> str:
    """Return the first letters of a text, n at most.

    Example:
        >>> _shortened("great white shark", 10), _shortened("shark", 10)
        ('great whi…', 'shark')
    """
    return text if len(text) <= n else f"{text[: n - 1]}…"


def draw_curves(
    file: BinaryIO, model: str, curves: Mapping[CurveKey, Tensor], fractions: Mapping[CurveKey, Tensor]
) -> None:
    """Draw the mean curve of every method, a field for each curve of each protocol."""
    from matplotlib.figure import Figure

    fields = list(dict.fromkeys((protocol, curve) for _, protocol, curve in curves if curve not in UNDRAWN))
    n_images = max((len(values) for values in curves.values()), default=0)
    methods = list(dict.fromkeys(method for method, _, _ in curves))
    columns = min(4, max(1, len(fields)))
    rows = max(1, -(-len(fields) // columns))
    with drawing():
        figure = Figure(figsize=(3.2 * columns, 2.6 * rows + 0.9), layout="constrained")
        figure.suptitle(f"{model}: mean score of {n_images:,} images while they are removed, or come back", fontsize=10)
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(fields) :]:
            axis.set_axis_off()
        for axis, (protocol, curve) in zip(axes.flat, fields, strict=False):
            for place, method in enumerate(methods):
                key = (method, protocol, curve)
                if len(curves[key]):
                    axis.plot(100 * fractions[key], curves[key].mean(0), linewidth=1.2, **_style(place, method))
            axis.set_title(f"{protocol}: {curve}", fontsize=9)
            axis.set_xlabel("% changed", fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        lines = axes.flat[0].get_lines()
        words = [_shortened(method.replace("_", " "), 40) for method in methods] if lines else []
        legend = figure.legend(lines, words, loc="outside lower center", ncols=5, fontsize=7)
        for text in legend.get_texts():
            text.set_parse_math(False)
        figure.savefig(file, format="png", dpi=150)


def _style(place: int, method: str) -> dict[str, Any]:
    """Return colour and dashes of a method: baselines are grey, and no two others look alike."""
    from matplotlib import colormaps

    if method in BASELINES:
        return {"color": RUN, "linestyle": LINES[1 + BASELINES.index(method)]}
    colours: Any = colormaps["tab10"]
    palette = [colour for i, colour in enumerate(colours.colors) if i != GREY]
    return {"color": palette[place % len(palette)], "linestyle": LINES[place // len(palette) % len(LINES)]}
