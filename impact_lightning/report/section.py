"""A section of the report: a piece of HTML, the data that its scripts read, and what is missing in it."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        name: Its anchor: `answer`, `neurons`, `features`, ...
        title: Its heading.
        html: What stands in it; made by a template, so that every name is escaped.
        data: What its script reads, as JSON; none for a section without a script.
        gaps: What is missing and why, for people; shown where the section is, and again among the methods.
    """

    name: str
    title: str
    html: Markup
    data: Any = None
    gaps: tuple[str, ...] = field(default=())


@cache
def environment() -> Environment:
    """Return what renders the templates of this package: everything is escaped, an unknown name is an error."""
    return Environment(
        loader=PackageLoader("impact_lightning.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> Markup:
    """Return a template with its values."""
    return Markup(environment().get_template(template).render(**values))  # the template has escaped them
