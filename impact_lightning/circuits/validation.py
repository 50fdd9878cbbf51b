"""Validation: the smallest circuit of each task, and everything that could show that it is none."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from impact_lightning.circuits.controls import areas, faithfulness, p_value, random_circuits
from impact_lightning.circuits.edges import EdgeCounts, Wiring, count_edges, wiring
from impact_lightning.circuits.evaluation import Evaluation, Filling, Scores
from impact_lightning.circuits.live import live_nodes
from impact_lightning.circuits.minimality import Minimality, clean, minimality
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.size import Found, ranking, smallest_circuits
from impact_lightning.metrics.bootstrap import interval_of_mean
from impact_lightning.results import Interval

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the nodes, of the faithfulness curve
RELAXED = (0.25, 0.5, 0.75)  # shares of the complement that are ablated
Row = dict[str, float]  # scores of one circuit by name


@dataclass(frozen=True)
class Validated:
    """What is known of one circuit; scores are of images that had no part in learning it or in its size.

    Args:
        task: Number of its task.
        task_is_of_labels: Whether an answer is right or wrong, and not just near to the whole model's.
        switches: Which of its switches are on, bool `(n_switches,)`.
        mask: Its nodes, bool `(n,)`.
        reached: Whether any size reached the target on the images that sizes are chosen on.
        target: The loss that it had to reach.
        sizes: The smallest size that reached it, and the smallest from which on all do, in switches.
        scores: By condition: the circuit `alone`, the model `without` it, the `full` model, the `empty` circuit, as
            many switches `by_gradient` and `by_magnitude`, and the circuit where its complement is treated otherwise.
        intervals: Of the losses of some conditions.
        random_alone: Losses of circuits as large in every site, drawn at random.
        random_without: Losses without these.
        outside_without: Losses without others, drawn outside of the circuit as far as sites have as many.
        cpr: Area under the faithfulness curve.
        cmd: Area between that curve and 1.
        minimality: What its nodes are there for one by one.
        elsewhere: By how much the loss of other tasks rises without it, on average.
    """

    task: int
    task_is_of_labels: bool
    switches: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    reached: bool
    target: float
    sizes: tuple[int, int]
    scores: dict[str, Row]
    intervals: dict[str, Interval]
    random_alone: Tensor = field(repr=False)
    random_without: Tensor = field(repr=False)
    outside_without: Tensor = field(repr=False)
    cpr: float
    cmd: float
    minimality: Minimality
    elsewhere: float

    @property
    def p_sufficient(self) -> float:
        """Share of random circuits that do as well alone."""
        return p_value(self.scores["alone"]["loss"], self.random_alone, lower_is_better=True)

    @property
    def p_necessary(self) -> float:
        """Share of random circuits that are missed as much."""
        return p_value(self.scores["without"]["loss"], self.random_without, lower_is_better=False)

    @property
    def ncq(self) -> float:
        """Accuracy kept times the share of nodes left out."""
        full = self.scores["full"]["accuracy"]
        kept = self.scores["alone"]["accuracy"] / full if full else math.nan
        return kept * (1 - float(self.mask.double().mean()))

    @property
    def completeness(self) -> float:
        """Faithfulness of the complement: what the circuit has missed, 0 if nothing."""
        margins = [torch.tensor(self.scores[name]["margin"]) for name in ("without", "full", "empty")]
        return float(faithfulness(*margins))


class Validator:
    """Validates circuits of one model.

    Args:
        model: The model.
        nodes: Its nodes.
        select: Evaluates on the images that sizes are chosen on.
        report: Evaluates on those that are reported on.
        fillings: Other ways to fill nodes that are off, by name, under which circuits are looked at again.
        draws: Random circuits for each.
        seed: Their seed.
    """

    def __init__(
        self,
        model: nn.Module,
        nodes: Nodes,
        select: Evaluation,
        report: Evaluation,
        fillings: Mapping[str, Filling],
        *,
        draws: int = 20,
        seed: int = 0,
    ) -> None:
        self.nodes = nodes
        self.select = select
        self.report = report
        self.fillings = fillings
        self.draws = draws
        self.seed = seed
        self.wiring: Wiring = wiring(model, nodes)

    def sizes(self, scores: Tensor, tasks: Sequence[int], filling: Filling, targets: Tensor) -> Found:
        """Return the sizes at which circuits reach their targets, `(P,)`; chosen on images that are not reported on.

        Args:
            scores: Switches of larger scores are kept first, `(P, n_switches)`.
            tasks: The task of each circuit.
            filling: What nodes that are off hold.
            targets: The loss that each has to reach, `(P,)`.
        """
        place = ranking(scores)  # (P, n_switches)

        def losses(circuits: Tensor, sizes: Tensor) -> Tensor:
            masks = self.nodes.expand(place[circuits] < sizes[:, None])
            return self.select(
                masks, [tasks[p] for p in circuits.tolist()], of_circuits(filling, circuits.tolist())
            ).loss

        return smallest_circuits(losses, self.nodes.n_switches, targets)

    def __call__(
        self,
        scores: Tensor,
        rivals: Mapping[str, Tensor],
        tasks: Sequence[int],
        elsewhere: Sequence[int],
        filling: Filling,
        targets: Tensor,
    ) -> Iterator[Validated]:
        """Yield what is known of circuits, one by one.

        Args:
            scores: Of switches `(P, n_switches)`.
            rivals: Other scores of switches by name, `(P, n_switches)` each: circuits of the same size.
            tasks: The task of each circuit.
            elsewhere: The tasks that are looked at without a circuit, but for its own.
            filling: What nodes that are off hold.
            targets: The loss that each circuit has to reach, `(P,)`.
        """
        found = self.sizes(scores, tasks, filling, targets)
        sizes = torch.where(found.smallest < 0, self.nodes.n_switches, found.smallest)
        for p, task in enumerate(tasks):
            own = of_circuits(filling, [p])
            switches = ranking(scores[p : p + 1])[0] < sizes[p]
            if int(found.smallest[p]) > 0:
                switches = clean(switches, self.nodes, self.select, task, own, float(targets[p]))
            as_large = {
                name: self.nodes.expand(ranking(other[p : p + 1]) < int(switches.sum()))
                for name, other in rivals.items()
            }
            yield self._validate(
                switches,
                as_large,
                task,
                [other for other in elsewhere if other != task],
                own,
                curve=ranking(scores[p : p + 1]),
                reached=int(found.smallest[p]) >= 0,
                target=float(targets[p]),
                sizes=(int(found.smallest[p]), int(found.safe[p])),
            )

    def _validate(
        self,
        switches: Tensor,
        rivals: Mapping[str, Tensor],
        task: int,
        elsewhere: Sequence[int],
        filling: Filling,
        *,
        curve: Tensor,
        reached: bool,
        target: float,
        sizes: tuple[int, int],
    ) -> Validated:
        mask = self.nodes.expand(switches[None])  # (1, n)
        conditions = {
            "alone": self.report(mask, [task], filling),
            "without": self.report(~mask, [task], filling),
            "empty": self.report(torch.zeros_like(mask), [task], filling),
            **{name: self.report(rival, [task], filling) for name, rival in rivals.items()},
            **{name: self.report(mask, [task], other) for name, other in self.fillings.items()},
            **self._relaxed(switches, task, filling),
        }
        drawn, others_drawn = (
            self.nodes.expand(random_circuits(switches, self.nodes, self.draws, seed=self.seed, outside=outside))
            for outside in (False, True)
        )
        same = [task] * self.draws
        cpr, cmd = self._areas(curve, task, filling)
        whole = self.report.whole
        others = list(elsewhere)
        rise = self.report((~mask).expand(len(others), -1), others, filling).loss - whole.loss[others]
        return Validated(
            task=task,
            task_is_of_labels=self.report.tasks[task].readout != "kl",
            switches=switches,
            mask=mask[0],
            reached=reached,
            target=target,
            sizes=sizes,
            scores={"full": _row(whole, task), **{name: _row(scores, 0) for name, scores in conditions.items()}},
            intervals={
                "full": interval_of_mean(whole.losses[task], what="images", seed=self.seed),
                **{
                    name: interval_of_mean(conditions[name].losses[0], what="images", seed=self.seed)
                    for name in ("alone", "without")
                },
            },
            random_alone=self.report(drawn, same, filling).loss,
            random_without=self.report(~drawn, same, filling).loss,
            outside_without=self.report(~others_drawn, same, filling).loss,
            cpr=cpr,
            cmd=cmd,
            minimality=minimality(switches, self.nodes, self.report, task, filling, seed=self.seed),
            elsewhere=float(rise.mean()),
        )

    def _relaxed(self, switches: Tensor, task: int, filling: Filling) -> dict[str, Scores]:
        """Return scores where a random share of the complement is ablated: ablations that cancel show in between."""
        drawn = torch.rand(len(switches), generator=torch.Generator().manual_seed(self.seed))
        place = torch.where(switches, 1.0, drawn).argsort().argsort()  # the complement comes first, in any order
        left = int((~switches).sum())
        found = {}
        for share in RELAXED:
            mask = self.nodes.expand((place >= round(share * left))[None])
            found[f"relaxed {round(100 * share)}"] = self.report(mask, [task], filling)
        return found

    def _areas(self, place: Tensor, task: int, filling: Filling) -> tuple[float, float]:
        """Return CPR and CMD of nested circuits."""
        sizes = (torch.tensor(SHARES, dtype=torch.float64) * self.nodes.n_switches).round().long()
        masks = self.nodes.expand(place < sizes[:, None])
        ends = torch.zeros(1, self.nodes.n, dtype=torch.bool)
        margins = self.report(torch.cat([masks, ends]), [task] * (len(sizes) + 1), filling).margin
        curve = faithfulness(margins[:-1], self.report.whole.margin[task], margins[-1])
        return areas(torch.tensor(SHARES, dtype=torch.float64), curve)

    def counts(self, masks: Tensor, constants: Tensor) -> tuple[EdgeCounts, Tensor]:
        """Return nodes and edges of circuits `(P, n)`, and how many of their nodes are live `(P,)`."""
        live = live_nodes(self.wiring, masks, constants.mean(-2))
        return count_edges(self.wiring, masks), live.sum(1)


def at_size(run: Evaluation, scores: Tensor, size: int, task: int, filling: Filling) -> float:
    """Return the loss of the circuit of a given number of switches, those of the largest scores `(1, n)`."""
    return float(run(run.nodes.expand(ranking(scores) < size), [task], filling).loss)


def of_circuits(filling: Filling, circuits: Sequence[int]) -> Filling:
    """Return what nodes of some circuits hold; constants of one circuit are `(1 or T, n)`."""
    if not isinstance(filling, Tensor) or filling.ndim == 2:
        return filling
    return filling[circuits[0]] if len(circuits) == 1 else filling[list(circuits)]


def _row(scores: Scores, p: int) -> Row:
    return {name: float(column[p]) for name, column in scores._asdict().items() if name != "losses"}
