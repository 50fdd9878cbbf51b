"""What a terminal shows of circuits: a row for each model, and a row for each circuit."""

from collections import Counter
from collections.abc import Sequence
from textwrap import fill

import numpy as np
from rich.markup import escape
from rich.table import Table

from impact_lightning.circuits.findings import Finding, ModelCircuits, comparison, findings
from impact_lightning.circuits.validation import Validated
from impact_lightning.circuits.verdict import LEVEL, PASSED, remarks

VERDICT = 12  # letters in a line of it: rich would cut its longest word where a terminal has 80 columns


def model_table(models: Sequence[ModelCircuits]) -> Table:
    """Return a table with a column for each model: how large its circuits are at one loss, and what they are worth."""
    table = Table(title="circuits at matched loss", title_justify="left", caption_justify="left")
    table.caption = (
        f"geometric means over tasks and their 95 % intervals; sufficient, necessary: p <= {LEVEL} of random "
        f"circuits; x: times those of {models[0].model}; d: density of weights; stability: Jaccard index between seeds"
    )
    table.add_column("")
    for found in models:
        table.add_column(escape(found.model), justify="right")
    for cells in zip(*(_column(found, models[0]) for found in models), strict=True):
        if any(cell for _, cell in cells):
            table.add_row(cells[0][0], *(cell for _, cell in cells))
    return table


def _column(found: ModelCircuits, first: ModelCircuits) -> list[tuple[str, str]]:
    """Return what the table says of a model, and what that is."""
    known = {one.measure: one for one in findings(found) if one.of == found.model}
    ratios = {one.measure: one for one in comparison(found, first)} if found is not first else {}
    reached = [found.validated[p] for p in found.counted()]
    stable = [one for one in found.stability.values() if one is not None]
    chance = [float(np.mean(column)) for column in zip(*((one.nodes, one.chance) for one in stable), strict=True)]
    return [
        ("circuits that reach the loss", f"{len(reached)} of {len(found.validated)}"),
        ("controls that reach it at any size", _controls(found)),
        ("nodes", _with_interval(known.get("nodes_geometric_mean"))),
        ("  x", _with_interval(ratios.get("nodes_ratio"), 2)),
        ("edges", _with_interval(known.get("edges_geometric_mean"))),
        ("  x", _with_interval(ratios.get("edges_ratio"), 2)),
        ("  x expected of density", _null(ratios.get("edges_ratio"))),
        ("edges / d", _with_interval(known.get("edges_over_density_geometric_mean"))),
        ("  x", _with_interval(ratios.get("edges_over_density_ratio"), 2)),
        ("sufficient", f"{sum(one.p_sufficient <= LEVEL for one in reached)} of {len(reached)}"),
        ("necessary", f"{sum(one.p_necessary <= LEVEL for one in reached)} of {len(reached)}"),
        ("pass every check", f"{sum(text == PASSED for text in found.verdicts)} of {len(reached)}"),
        ("stability (by chance)", f"{chance[0]:.2f} ({chance[1]:.2f})" if chance else ""),
    ]


def circuit_table(found: ModelCircuits) -> Table:
    """Return a table with a row for each circuit of a model."""
    table = Table(
        title=escape(f"circuits of {found.model}"),
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    table.caption = (
        "loss alone / to be reached / of the whole model / without the circuit; p of random circuits alone / without "
        "them; null: losses of circuits of the same size, learnt where there is nothing to find; d: density of weights"
    )
    counts = Counter(remark for one in found.validated for remark in remarks(one))
    table.caption += "".join(f"; {n} of {len(found.validated)}: {remark}" for remark, n in counts.items())
    for heading in ("task", "nodes", "edges", "edges / d", "loss", "p", "null"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    table.add_column("verdict", no_wrap=True)
    for p, (task, seed, one) in enumerate(zip(found.tasks, found.seeds, found.validated, strict=True)):
        table.add_row(
            escape(f"{task}, seed {seed}"),
            f"{int(found.counts.nodes[p]):,}",
            f"{int(found.counts.edges[p]):,}",
            f"{float(found.counts.normalised_edges[p]):,.0f}",
            " / ".join(f"{loss:.2f}" for loss in _losses(one)),
            f"{one.p_sufficient:.2f} / {one.p_necessary:.2f}",
            " / ".join(f"{control.loss:.2f}" for control in found.controls[p].values()),
            fill(found.verdicts[p], VERDICT),
        )
    return table


def _losses(one: Validated) -> tuple[float, ...]:
    return (one.scores["alone"]["loss"], one.target, one.scores["full"]["loss"], one.scores["without"]["loss"])


def condition_table(found: ModelCircuits) -> Table:
    """Return a table with a row for each condition under which circuits were looked at: means over circuits."""
    table = Table(
        title=escape(f"circuits of {found.model}, looked at otherwise"), title_justify="left", caption_justify="left"
    )
    table.caption = (
        "means over circuits that reach their target; relaxed: that share of the complement, in per cent, is off; "
        "resampled: the complement is as in other images, of the same side of the task or of another one"
    )
    for heading in ("condition", "loss", "accuracy", "divergence", "agreement"):
        table.add_column(heading, justify="left" if heading == "condition" else "right")
    reached = [one.scores for one in found.validated if one.reached]
    for name in reached[0] if reached else ():
        columns = ("loss", "accuracy", "divergence", "agreement")
        means = [float(np.mean([scores[name][column] for scores in reached])) for column in columns]
        table.add_row(escape(name), *(f"{mean:.3f}" for mean in means))
    return table


def _with_interval(one: Finding | None, digits: int = 0) -> str:
    if one is None:
        return ""
    values = [one.value] + ([one.interval.low, one.interval.high] if one.interval else [])
    first, *others = (f"{value:,.{digits}f}" for value in values)
    return first + (f" ({', '.join(others)})" if others else "")


def _null(one: Finding | None) -> str:
    return "" if one is None or one.null is None else f"{one.null.value:.2f}"


def _controls(found: ModelCircuits) -> str:
    """Return how many of those that control the tasks reach their targets."""
    by_task = {
        (task, name): one for task, own in zip(found.tasks, found.controls, strict=True) for name, one in own.items()
    }
    return f"{sum(one.smallest >= 0 for one in by_task.values())} of {len(by_task)}" if by_task else ""
