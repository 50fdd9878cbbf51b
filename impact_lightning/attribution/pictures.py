"""Pictures of maps: images with what every method says of them, and the mean curves of every method."""

from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from impact_lightning.attribution.findings import BASELINE
from impact_lightning.attribution.study import CurveKey, Example
from impact_lightning.data.pictures import RGB, drawing

CELL = 1.25  # inches of a picture in the gallery
RUN = "#8a8a8a"  # curves that are there for comparison
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
        size = (CELL * (1 + len(methods)), (CELL + 0.22) * max(1, len(shown)) + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle(f"{model}: patches that speak for the class (red) and against it (blue)", fontsize=10)
        axes = figure.subplots(max(1, len(shown)), 1 + len(methods), squeeze=False)
        for row, example in zip(axes, shown, strict=False):
            picture = pictures[example.row]
            row[0].imshow(picture)
            is_right = "" if example.label == example.target else f", is {names[example.label]}"
            row[0].set_title(
                f"{names[example.target]} {example.probability:.0%}{is_right}"[:28], fontsize=6, loc="left"
            )
            for place, (method, relevance) in enumerate(example.maps.items(), 1):
                row[place].imshow(overlay(picture, relevance.numpy()))
                if row is axes[0]:
                    row[place].set_title(method.replace("_", " "), fontsize=6)
        for axis in axes.flat:
            axis.set_axis_off()
        figure.savefig(file, format="png", dpi=150)


def draw_curves(
    file: BinaryIO, model: str, curves: Mapping[CurveKey, Tensor], fractions: Mapping[CurveKey, Tensor]
) -> None:
    """Draw the mean curve of every method, a field for each curve of each protocol."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    fields = list(dict.fromkeys((protocol, curve) for _, protocol, curve in curves if curve != "groups"))
    methods = list(dict.fromkeys(method for method, _, _ in curves))
    palette = colormaps["tab10"].colors  # type: ignore[attr-defined]
    columns = min(4, max(1, len(fields)))
    lines = -(-len(fields) // columns)
    with drawing():
        figure = Figure(figsize=(3.2 * columns, 2.6 * max(1, lines) + 0.9), layout="constrained")
        figure.suptitle(f"{model}: mean score while images are removed, or come back", fontsize=10)
        axes = figure.subplots(max(1, lines), columns, squeeze=False)
        for axis in axes.flat[len(fields) :]:
            axis.set_axis_off()
        for axis, (protocol, curve) in zip(axes.flat, fields, strict=False):
            for place, method in enumerate(methods):
                key = (method, protocol, curve)
                is_baseline = method in (BASELINE, "centre")
                style = {"color": RUN} if is_baseline else {"color": palette[place % len(palette)]}
                line = (
                    LINES[(place // len(palette)) % len(LINES)] if not is_baseline else LINES[1 + (method == "centre")]
                )
                axis.plot(100 * fractions[key], curves[key].mean(0), line, label=method, linewidth=1.2, **style)
            axis.set_title(f"{protocol}: {curve}", fontsize=9)
            axis.set_xlabel("% changed", fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(
            handles, [text.replace("_", " ") for text in labels], loc="outside lower center", ncols=5, fontsize=7
        )
        figure.savefig(file, format="png", dpi=150)
