"""The page: all sections in one HTML file that needs nothing else, and reaches for nothing."""

import json
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from impact_lightning.files import atomic_write
from impact_lightning.report import (
    accuracy,
    answers,
    attribution_figures,
    circuit_figures,
    circuits,
    classes,
    features,
    methods,
    neuron_figures,
    planted,
    sae_figures,
)
from impact_lightning.report.section import Section, render
from impact_lightning.report.sprites import Album
from impact_lightning.report.words import several, size
from impact_lightning.results import plain
from impact_lightning.suite.outcome import FILE, Outcome, read_outcome
from impact_lightning.types import UserError

REPORT = "report.html"
LARGE = 25_000_000  # bytes that a browser opens without waiting
STYLES = ("style.css", "viewers.css")
SCRIPTS = (
    "page.js", "viewers.js", "pictures.js", "feature_browser.js", "circuit_drawing.js", "circuit_viewer.js",
    "class_pages.js", "start.js",
)  # fmt: skip
SHORT = {  # of long titles, in the navigation
    "answer": "Answer", "planted": "Planted truth", "sae": "SAE", "features": "Features", "circuit-sizes": "Circuits",
    "attribution": "Attribution", "accuracy": "Accuracy",
}  # fmt: skip
UNSAFE = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}  # no name can end a script


class Builder(NamedTuple):
    """What makes a section, and what it is called if it cannot."""

    name: str
    title: str
    build: Callable[[Outcome, Path], Section]
    level: str = ""  # without which there is nothing to show


class Page(NamedTuple):
    """The report, and what is missing in it."""

    html: str
    gaps: list[tuple[str, str]]  # title of the section, what is missing


def write_report(folder: Path) -> Path:
    """Write `report.html` from what is in the folder of a run, and say where, how large, and what is missing in it.

    Args:
        folder: The folder, with its `results.json`.
    """
    made = page(read_outcome(folder / FILE), folder)
    path = folder / REPORT
    content = made.html.encode(errors="backslashreplace")  # names of files need not be UTF-8
    with atomic_write(path) as file:
        file.write(content)
    large = f": more than {size(LARGE)}, browsers may be slow with it" if len(content) > LARGE else ""
    print(f"report: {path} ({size(len(content))}{large})")
    for title, gap in made.gaps:
        print(f"  not shown in {title}: {gap}")
    return path


def page(outcome: Outcome, folder: Path) -> Page:
    """Return the report of an outcome.

    Args:
        outcome: What was found.
        folder: Where the files of its units are.
    """
    made = sections(outcome, folder)
    gaps = [(one.title, gap) for one in made for gap in one.gaps]
    html = render(
        "page.html",
        outcome=outcome,
        sections=made,
        data={one.name: script_data(one.data) for one in made if one.data is not None},
        styles=[_text(name) for name in STYLES],
        scripts=[_text(name) for name in SCRIPTS],
        is_shown=_is_shown,
        short=SHORT,
        failed=[unit for unit in outcome.units if unit.state != "done"],
        several=several,
    )
    return Page(str(html), gaps)


def _text(name: str) -> Markup:
    """Return a file of ours that is no template."""
    return Markup(files(__package__).joinpath("templates", name).read_text("utf-8"))


def _is_shown(section: Section, gap: str) -> bool:
    """Return whether a section says by itself that something is missing."""
    return escape(gap) in section.html


def sections(outcome: Outcome, folder: Path) -> list[Section]:
    """Return all sections in their order; one that cannot be made says why."""
    asked = {"", *(unit.level for unit in outcome.units)}
    made = [_made(builder, outcome, folder) for builder in builders() if builder.level in asked]
    gaps = [(one.title, gap) for one in made for gap in one.gaps]
    last = Builder("methods", "Methods", partial(methods.section, gaps=gaps))
    return [*made, _made(last, outcome, folder)]


def builders() -> list[Builder]:
    """Return what makes each section but the last one."""
    album = Album()  # pictures that viewers share; the last of them, that of classes, holds them all
    return [
        Builder("answer", "Did sparsity make it easier to understand?", answers.section),
        Builder("planted", "Does each level find what is known to be there?", planted.section),
        Builder("neurons", "Neurons", neuron_figures.section, "neurons"),
        Builder("sae", "SAE features", sae_figures.section, "sae"),
        Builder(features.NAME, "Feature browser", partial(features.section, album=album), "sae"),
        Builder("circuit-sizes", "Circuits: nodes and edges at the same loss", circuit_figures.section, "circuits"),
        Builder(circuits.NAME, "Circuit viewer", partial(circuits.section, album=album), "circuits"),
        Builder("attribution", "Attribution maps", attribution_figures.section, "attribution"),
        Builder(classes.NAME, "Classes", partial(classes.section, album=album)),
        Builder("accuracy", "Accuracy against sparsity", accuracy.section),
    ]


def _made(builder: Builder, outcome: Outcome, folder: Path) -> Section:
    """Return a section, or a gap in its place: whatever is wrong with one file, the other sections are shown."""
    try:
        return builder.build(outcome, folder)
    except Exception as error:  # files of a run may be damaged in any way; what is wrong is shown, nothing is hidden
        return Section(builder.name, builder.title, Markup(), gaps=(_said(error),))


def _said(error: Exception) -> str:
    """Return what went wrong, for people."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def script_data(data: Any) -> Markup:
    r"""Return data as JSON that no name in it can end.

    Example:
        >>> print(script_data({"name": "</script>", "value": float("nan")}))
        {"name":"\u003c/script\u003e","value":null}
    """
    text = json.dumps(plain(data), separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(UNSAFE))  # nothing in it is HTML any more
