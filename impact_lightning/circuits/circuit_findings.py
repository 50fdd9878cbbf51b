"""What was found of circuits, as records and as a table."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from impact_lightning.circuits.controls import jaccard
from impact_lightning.circuits.edges import EdgeCounts
from impact_lightning.circuits.validation import Validated
from impact_lightning.results import Null

Number = tuple[float, Null | None]
Found = tuple[str, float, str, int, Null | None, tuple[str, ...]]  # measure, value, of, n, null, notes


class Circuits(NamedTuple):
    """All circuits of a run, P of them."""

    tasks: Sequence[str]
    seeds: Sequence[int]
    nonsense: Sequence[bool]
    validated: Sequence[Validated]
    counts: EdgeCounts
    live: Tensor  # (P,) live nodes


def circuit_findings(circuits: Circuits) -> Iterator[Found]:
    """Yield what was found of each circuit, means over tasks, and how alike circuits of several seeds are."""
    for p, (task, seed, one) in enumerate(zip(circuits.tasks, circuits.seeds, circuits.validated, strict=True)):
        for measure, (value, null) in {**_size(circuits, p), **_scores(one)}.items():
            yield measure, value, f"{task}/seed {seed}", int(one.alone["images"]), null, (one.verdict,)
    real = [p for p, is_nonsense in enumerate(circuits.nonsense) if not is_nonsense]
    found = [p for p in real if circuits.validated[p].reached]
    notes = (f"{len(real) - len(found)} circuits that reach no target are left out",) if len(found) < len(real) else ()
    counts = circuits.counts
    for measure, values in (("nodes", counts.nodes), ("edges_over_density", counts.normalised_edges)):
        mean = float(values[found].double().clamp_min(1).log().mean().exp())
        yield f"{measure}_geometric_mean", mean, "all tasks", len(found), None, notes
    for task in dict.fromkeys(circuits.tasks[p] for p in real):
        same = [circuits.validated[p].mask for p in real if circuits.tasks[p] == task]
        pairs = [jaccard(one, other) for one, other in combinations(same, 2)]
        if pairs:
            value, chance = (float(np.mean(column)) for column in zip(*pairs, strict=True))
            yield "stability", value, task, len(pairs), Null(chance, "circuits of these sizes at random"), ()


def _size(circuits: Circuits, p: int) -> dict[str, Number]:
    counts = circuits.counts
    by_chance = Null(1.0, "nodes chosen without regard to weights")
    return {
        "nodes": (float(counts.nodes[p]), None),
        "live_nodes": (float(circuits.live[p]), None),
        "edges": (float(counts.edges[p]), None),
        "edges_over_density": (float(counts.normalised_edges[p]), None),
        "density_ratio": (float(counts.density_ratio[p]), by_chance),
    }


def _scores(one: Validated) -> dict[str, Number]:
    n = len(one.random_alone)
    chance = f"mean of {n} random circuits with as many nodes in every site"
    return {
        "loss_alone": (one.alone["loss"], Null(float(one.random_alone.mean()), chance)),
        "loss_without": (one.without["loss"], Null(float(one.random_without.mean()), chance)),
        "loss_full": (one.full["loss"], None),
        "loss_empty": (one.empty["loss"], None),
        "loss_by_gradient": (one.by_gradient["loss"], None),
        "accuracy_alone": (one.alone["accuracy"], Null(one.empty["accuracy"], "the empty circuit")),
        "accuracy_without": (one.without["accuracy"], Null(one.full["accuracy"], "the whole model")),
        "accuracy_full": (one.full["accuracy"], Null(one.empty["accuracy"], "the empty circuit")),
        "divergence": (one.alone["divergence"], None),
        "agreement": (one.alone["agreement"], None),
        "p_sufficient": (one.p_sufficient, None),
        "p_necessary": (one.p_necessary, None),
        "ncq": (one.ncq, None),
        "cpr": (one.cpr, Null(0.0, "constants alone")),
        "cmd": (one.cmd, Null(1.0, "constants alone")),
    }


def circuit_table(circuits: Circuits) -> Table:
    """Return a table with a row for each circuit."""
    table = Table(title="circuits", title_justify="left", caption_justify="left")
    table.caption = (
        "loss alone / of the whole model / without the circuit; p of random circuits alone / without them; "
        "edges are divided by the density of the weights"
    )
    for heading in ("task", "nodes", "edges", "loss", "p", "verdict"):
        table.add_column(heading, justify="left" if heading in ("task", "verdict") else "right")
    for p, (task, seed, one) in enumerate(zip(circuits.tasks, circuits.seeds, circuits.validated, strict=True)):
        table.add_row(
            escape(f"{task}, seed {seed}"),
            f"{int(circuits.counts.nodes[p]):,}",
            f"{float(circuits.counts.normalised_edges[p]):,.0f}",
            " / ".join(f"{part['loss']:.2f}" for part in (one.alone, one.full, one.without)),
            f"{one.p_sufficient:.2f} / {one.p_necessary:.2f}",
            one.verdict,
        )
    return table
