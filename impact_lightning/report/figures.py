"""Figures of the report: SVG inside the page, pictures as data, each with words for those who cannot see it."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from impact_lightning.data.pictures import drawing
from impact_lightning.neurons.look import colours as colours_of
from impact_lightning.neurons.look import label
from impact_lightning.report.section import render
from impact_lightning.suite.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUALITY = 85  # of JPEG
LEFT_OUT = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"<metadata>.*?</metadata>\s*",
        r"<style[^>]*>.*?</style>\s*",
        r"<!--.*?-->\s*",
        r"<defs>\s*</defs>\s*",
    )
]
LONG = re.compile(r"(-?\d+\.\d\d)\d+")  # hundredths of a point are enough


@dataclass(frozen=True)
class Plate:
    """A figure with its words.

    Args:
        name: Its anchor.
        picture: The SVG, or a table of pictures.
        caption: What is seen, and how to read it.
        head: Names of the columns of the numbers behind it.
        rows: The numbers behind it, as they are read; none where they are in a table elsewhere.
    """

    name: str
    picture: Markup
    caption: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def plates(*several: Plate) -> Markup:
    """Return figures as HTML."""
    return render("figures.html", plates=several)


def figures_of(html: str) -> dict[str, str]:
    r"""Return the figures of a page by their anchors, each as HTML.

    Example:
        >>> figures_of('<p>a</p><figure id="b"><figcaption>c</figcaption></figure>')
        {'b': '<figure id="b"><figcaption>c</figcaption></figure>'}
    """
    return {figure[1]: figure[0] for figure in re.finditer(r'<figure id="([^"]*)">.*?</figure>', html, re.DOTALL)}


def colours(outcome: Outcome) -> dict[str, str]:
    """Return the colour of each model, the same everywhere in the report; seeds of a model share one."""
    of_groups = colours_of(groups(outcome))
    return {model.name: of_groups[model.group] for model in outcome.models}


def groups(outcome: Outcome) -> list[str]:
    """Return the names of models without their seeds."""
    return list(dict.fromkeys(model.group for model in outcome.models))


def style() -> AbstractContextManager[None]:
    """Return the style in which all figures are drawn."""
    return drawing()


def svg(figure: "Figure", name: str, said: str) -> Markup:
    """Return a figure as SVG for the inside of a page, always the same bytes for the same figure.

    Args:
        figure: The figure.
        name: Its anchor: the names inside it begin with it, so that figures of a page do not share any.
        said: What it shows, for those who cannot see it.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    for artist in figure.findobj(Text):
        artist.set_parse_math(False)  # names may hold dollars
    file = io.StringIO()
    with style(), rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for pattern in LEFT_OUT:
        drawn = pattern.sub("", drawn)
    drawn = re.sub(r"<g id=\"[^\"]*\"", "<g", drawn)  # of layers, such as axes_1: they would be there once a figure
    drawn = re.sub(r" d=\"[^\"]*\"", lambda path: LONG.sub(r"\1", path[0]), drawn).replace("xlink:href", "href")
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    box = f"0 0 {width * 0.75:g} {height * 0.75:g}"  # points, of which 72 are an inch
    begin = Markup('<svg role="img" aria-label="{}" viewBox="{}" width="{}" data-figure="{}">')
    return begin.format(said, box, width, name) + Markup(drawn[drawn.index(">") + 1 :])  # by matplotlib, which escapes


def jpeg(picture: NDArray[np.uint8]) -> str:
    """Return a picture `(h, w, 3)` as an address that holds it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def legend(
    figure: "Figure", colour: Mapping[str, str], *more: Any, marker: str = "o", line: Literal["", "-"] = ""
) -> None:
    """Say which colour is which model, in as many columns as there is room for.

    Args:
        figure: The figure.
        colour: Of each model.
        more: What else is to be said: lines of matplotlib with labels.
        marker: How models are drawn.
        line: Style of their lines.
    """
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=c, marker=marker, linestyle=line, label=label(name)) for name, c in colour.items()]
    handles = [*marks, *more]
    longest = max(len(str(handle.get_label())) for handle in handles) + 6  # letters
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 13 / longest)))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=8.5)


def tidy(axes: Any) -> None:
    """Take away the lines of an axis that carry nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#c4c4c4", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
