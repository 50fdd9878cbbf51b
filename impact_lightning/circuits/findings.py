"""What was found of circuits: every number with its null and its interval."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from impact_lightning.circuits.edges import EdgeCounts
from impact_lightning.circuits.overlap import Overlap
from impact_lightning.circuits.validation import Validated
from impact_lightning.circuits.verdict import UNABLE, Control, remarks
from impact_lightning.results import Interval, Null


@dataclass(frozen=True)
class ModelCircuits:
    """The circuits of one model, P of them.

    Args:
        model: What the model is called.
        tasks: What the task of each is called.
        seeds: The seed of each.
        validated: What is known of each.
        controls: Circuits that were learnt where there is nothing to find, by what was taken away.
        counts: Nodes and edges.
        live: Live nodes `(P,)`.
        stability: By task, between seeds.
        sharing: Between tasks.
        verdicts: Of each.
    """

    model: str
    tasks: Sequence[str]
    seeds: Sequence[int]
    validated: Sequence[Validated]
    controls: Sequence[dict[str, Control]]
    counts: EdgeCounts
    live: Tensor
    stability: dict[str, Overlap | None]
    sharing: Overlap | None
    verdicts: Sequence[str]

    def named(self) -> list[str]:
        """Return what each circuit is called."""
        parts = zip(self.tasks, self.seeds, strict=True)
        return [f"{self.model}/{task}/seed {seed}" for task, seed in parts]

    def counted(self) -> list[int]:
        """Return which circuits have a size that means something: they reach their target, and a model that can."""
        pairs = enumerate(zip(self.validated, self.verdicts, strict=True))
        return [p for p, (one, text) in pairs if one.reached and bool(one.mask.any()) and text != UNABLE]

    def sizes(self) -> dict[str, Tensor]:
        """Return what circuits are compared by, `(P,)` each."""
        counts = self.counts
        return {
            "nodes": counts.nodes.double(),
            "live_nodes": self.live.double(),
            "edges": counts.edges.double(),
            "edges_over_density": counts.normalised_edges,
        }


@dataclass(frozen=True)
class Finding:
    """A number and what is needed to judge it."""

    measure: str
    value: float
    of: str
    n: int
    null: Null | None = None
    interval: Interval | None = None
    notes: tuple[str, ...] = ()


def findings(found: ModelCircuits) -> Iterator[Finding]:
    """Yield what was found of each circuit of a model, and of all together."""
    for p, of in enumerate(found.named()):
        yield from _of_circuit(found, p, of)
    for task, one in found.stability.items():
        if one is not None:
            yield from _overlap("stability", one, f"{found.model}/{task}")
    if found.sharing is not None:
        yield from _overlap("shared_between_tasks", found.sharing, found.model)
    for name, values in found.sizes().items():
        logs = _log_means(values, found)
        missing = len(found.validated) - len(found.counted())
        notes = (f"{missing} circuits that are none are left out: see their verdicts",) if missing else ()
        if logs:
            yield _geometric(f"{name}_geometric_mean", logs, found.model, None, notes)


def _of_circuit(found: ModelCircuits, p: int, of: str) -> Iterator[Finding]:
    one, counts = found.validated[p], found.counts
    n, notes = int(one.scores["full"]["images"]), (found.verdicts[p], *remarks(one))

    def finding(measure: str, value: float, null: Null | None = None, interval: Interval | None = None) -> Finding:
        return Finding(measure, value, of, n, null, interval, notes)

    for name, values in found.sizes().items():
        yield finding(name, float(values[p]))
    by_chance = Null(1.0, "nodes chosen without regard to weights")
    yield finding("density_ratio", float(counts.density_ratio[p]), by_chance)
    yield finding("query_key_paths", float(counts.paths[p]))
    yield finding("loss_to_reach", one.target)
    yield from _losses(one, finding)
    scores = one.scores
    yield finding("accuracy_alone", scores["alone"]["accuracy"], Null(scores["empty"]["accuracy"], "the empty circuit"))
    yield finding("accuracy_without", scores["without"]["accuracy"], Null(scores["full"]["accuracy"], "the model"))
    yield finding("accuracy_full", scores["full"]["accuracy"], Null(scores["empty"]["accuracy"], "the empty circuit"))
    yield finding("divergence", scores["alone"]["divergence"], Null(scores["empty"]["divergence"], "the empty circuit"))
    yield finding("agreement", scores["alone"]["agreement"], Null(scores["empty"]["agreement"], "the empty circuit"))
    yield finding("p_sufficient", one.p_sufficient)
    yield finding("p_necessary", one.p_necessary)
    yield finding("ncq", one.ncq)
    yield finding("cpr", one.cpr, Null(0.0, "constants alone"))
    yield finding("cmd", one.cmd, Null(1.0, "constants alone"))
    yield finding("completeness", one.completeness, Null(1.0, "a circuit that the model does not miss"))
    yield finding("idle", one.minimality.idle)
    for name, control in found.controls[p].items():
        where = name.replace(" ", "_")
        yield finding(f"loss_of_{where}", control.loss, Null(scores["alone"]["loss"], "the circuit, of the same size"))
        yield finding(f"learnt_loss_of_{where}", control.learnt, Null(control.loss, "on images it has not learnt from"))
        smallest = math.nan if control.smallest < 0 else float(control.smallest)  # nan: no size reaches the target
        yield finding(
            f"switches_of_{where}", smallest, Null(float(one.switches.sum()), "the circuit, at the same loss")
        )
    rise = scores["without"]["loss"] - scores["full"]["loss"]
    elsewhere = None if math.isnan(one.elsewhere) else Null(one.elsewhere, "mean rise of the losses of other tasks")
    yield finding("rise_without", rise, elsewhere)


def _losses(one: Validated, finding: Callable[..., Finding]) -> Iterator[Finding]:
    """Yield the loss under each condition: beside random circuits, or beside that of the circuit itself."""
    how = f"mean of {len(one.random_alone)} random circuits with as many switches in every site"
    nulls = {
        "alone": Null(float(one.random_alone.mean()), how),
        "without": Null(float(one.random_without.mean()), how),
    }
    others = Null(float(one.outside_without.mean()), "as many switches of every site that the circuit has not")
    yield finding("loss_without_beside_others", one.scores["without"]["loss"], others, one.intervals["without"])
    for name, row in one.scores.items():
        null = nulls.get(name)
        if null is None and name not in ("full", "empty"):
            null = Null(one.scores["alone"]["loss"], "the circuit alone, as it was learnt")
        yield finding(f"loss_{name.replace(' ', '_')}", row["loss"], null, one.intervals.get(name))


def _overlap(measure: str, one: Overlap, of: str) -> Iterator[Finding]:
    chance = "circuits of these sizes at random"
    yield Finding(measure, one.nodes, of, one.pairs, Null(one.chance, chance))
    yield Finding(f"{measure}_of_edges", one.edges, of, one.pairs, Null(one.edge_chance, chance))


# --------------------------------------------------------------------------------------------- of all circuits together


def _log_means(values: Tensor, found: ModelCircuits) -> dict[str, float]:
    """Return the mean logarithm over seeds for each task, of circuits that are any."""
    logs: dict[str, list[float]] = {}
    for p in found.counted():
        logs.setdefault(found.tasks[p], []).append(math.log(max(1.0, float(values[p]))))  # may have no edge
    return {task: float(np.mean(column)) for task, column in logs.items()}


def _geometric(measure: str, logs: dict[str, float], of: str, null: Null | None, notes: tuple[str, ...]) -> Finding:
    """Return a geometric mean over tasks; of few tasks, Student's t of logarithms is what says how sure it is."""
    values = np.array(list(logs.values()))
    interval = None
    if len(values) > 1:
        half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
        low, high = (math.exp(values.mean() + side) for side in (-half, half))
        interval = Interval(low, high, f"Student's t of logarithms, {len(values)} tasks")
    return Finding(measure, math.exp(values.mean()), of, len(values), null, interval, notes)


def comparison(found: ModelCircuits, reference: ModelCircuits) -> Iterator[Finding]:
    """Yield how many times as large circuits of a model are as those of another one, by tasks that both can do."""
    density = float(found.counts.density[0] / reference.counts.density[0])
    nulls = {
        "edges": Null(density, "as many nodes in both, chosen without regard to weights: the ratio of densities"),
    }
    for name in found.sizes():
        ours, theirs = (_log_means(one.sizes()[name], one) for one in (found, reference))
        logs = {task: ours[task] - theirs[task] for task in ours if task in theirs}
        missing = len(set(found.tasks)) - len(logs)
        notes = (f"{missing} tasks in which one of them has no circuit are left out",) if missing else ()
        if logs:
            of = f"{found.model} / {reference.model}"
            yield _geometric(f"{name}_ratio", logs, of, nulls.get(name, Null(1.0, "as large")), notes)
