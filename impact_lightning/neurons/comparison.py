"""Comparison: what was found of several models, side by side, for terminals and for Markdown."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from impact_lightning.neurons.findings import Finding
from impact_lightning.neurons.look import READABLE

Row = list[str]
CAPTION = (
    "means over {of}, (null) behind; differences are paired by class and less those of the nulls, over the layers that "
    "both have, [95 % bootstrap over classes]; * excludes zero, of each row by itself; other training seeds are not "
    "in the intervals"
)


def comparison_rows(
    of: str, findings: Mapping[str, Sequence[Finding]], differences: Mapping[str, Sequence[Finding]]
) -> tuple[Row, list[Row]]:
    """Return the heading and a row for each measure.

    Args:
        of: What the findings are of: `neurons`, `heads`, or a layer.
        findings: By model.
        differences: By model, of each but the first from that.
    """
    base = next(iter(findings))
    heading = ["measure", *findings, *(f"{name} - {base}" for name in differences)]
    rows: dict[str, Row] = {}
    for found in findings.values():
        for finding in _of(of, found):
            null = f" ({_number(finding.null.value)})" if finding.null else ""
            rows.setdefault(finding.measure, [finding.measure]).append(_number(finding.value) + null)
    for found in differences.values():
        for finding in _of(of, found):
            low, high = finding.interval.low, finding.interval.high
            mark = " *" if low > 0 or high < 0 else ""
            shown = f"{finding.value:+.4f} [{low:+.4f}, {high:+.4f}]{mark}"
            rows[finding.measure].append("–" if math.isnan(finding.value) else shown)
    order = {name: place for place, name in enumerate(READABLE)}
    return heading, sorted(rows.values(), key=lambda row: order.get(row[0], len(order)))


def comparison_table(
    of: str, findings: Mapping[str, Sequence[Finding]], differences: Mapping[str, Sequence[Finding]]
) -> Table:
    """Return the comparison for a terminal."""
    heading, rows = comparison_rows(of, findings, differences)
    table = Table(title=of, title_justify="left", caption=CAPTION.format(of=of), caption_justify="left")
    table.add_column(heading[0], no_wrap=True)
    for name in heading[1:]:
        table.add_column(escape(name), justify="right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def comparison_markdown(
    of: str, findings: Mapping[str, Sequence[Finding]], differences: Mapping[str, Sequence[Finding]]
) -> str:
    """Return the comparison as a table in Markdown."""
    heading, rows = comparison_rows(of, findings, differences)
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *([f"`{row[0]}`", *row[1:]] for row in rows)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"## {of}\n\n{table}\n\n{CAPTION.format(of=of).replace('*', chr(92) + '*')}\n"


def finding_rows(
    findings: Mapping[str, Sequence[Finding]], differences: Mapping[str, Sequence[Finding]]
) -> Iterator[list[str | float | None]]:
    """Yield a heading, and every finding with its null and interval as numbers."""
    base = next(iter(findings))
    yield ["model", "of", "measure", "value", "null", "low", "high", "n", "null_is"]
    named = [*findings.items(), *((f"{name} - {base}", found) for name, found in differences.items())]
    for name, found in named:
        for finding in found:
            null = finding.null
            judged = (None, "") if null is None else (null.value, null.how)
            interval = finding.interval.low, finding.interval.high
            yield [name, finding.of, finding.measure, finding.value, judged[0], *interval, finding.n, judged[1]]


def _of(of: str, found: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.of == of]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"
