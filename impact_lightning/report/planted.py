"""Planted truths: what is known to be in the data, and whether each level has found it."""

from pathlib import Path

from impact_lightning.report.section import Section, render
from impact_lightning.report.words import LEVEL_TITLES, interval, measure_name, number
from impact_lightning.suite.outcome import LEVELS, Outcome

HEAD = ("model", "what is known", "measure", "value", "95 % interval", "null", "found")


def section(outcome: Outcome, folder: Path) -> Section:
    """Return the table of planted truths.

    Args:
        outcome: What was found.
        folder: The folder of the run; nothing is read from it.
    """
    levels = []
    for name in LEVELS:
        planted = [one for one in outcome.planted if one.level == name]
        rows = [
            [
                one.model, one.known, measure_name(one.measure), number(one.value), interval(one.low, one.high),
                number(one.null), "✓\u00a0yes" if one.found else "✗\u00a0no",
            ]
            for one in planted
        ]  # fmt: skip
        found = sum(one.found for one in planted)
        said = f"{found} of {len(planted)} found" if planted else "nothing is known for this level"
        levels.append((LEVEL_TITLES[name], said, rows))
    html = render("planted.html", levels=levels if outcome.planted else [], head=HEAD)
    return Section("planted", "Does each level find what is known to be there?", html)
