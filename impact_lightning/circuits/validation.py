"""Validation: the smallest circuit of each task, and everything that could show that it is none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from impact_lightning.circuits.controls import areas, faithfulness, p_value, random_circuits
from impact_lightning.circuits.edges import EdgeCounts, Wiring, count_edges, wiring
from impact_lightning.circuits.evaluation import Evaluation, Scores
from impact_lightning.circuits.live import live_nodes
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.size import Found, Target, ranking, smallest_circuits

SURE = 3.0  # standard errors by which a model must be better than constants, to be able to do a task
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of the nodes, of the faithfulness curve


@dataclass(frozen=True)
class Validated:
    """What is known of one circuit; scores are of images that had no part in learning it or in its size.

    Args:
        mask: Its nodes, bool `(n,)`.
        reached: Whether any size reached the target on the images that sizes are chosen on.
        target: The loss that it had to reach.
        sizes: The smallest size that reached it, and the smallest from which on all do, in switches.
        alone: Everything else is ablated.
        without: Only the circuit is ablated.
        full: The whole model.
        empty: Nothing is left but constants.
        random_alone: Losses of circuits as large in every site, drawn at random.
        random_without: Losses without these.
        by_gradient: The same number of switches, those of the largest attribution.
        cpr: Area under the faithfulness curve.
        cmd: Area between that curve and 1.
    """

    mask: Tensor
    reached: bool
    target: float
    sizes: tuple[int, int]
    alone: dict[str, float]
    without: dict[str, float]
    full: dict[str, float]
    empty: dict[str, float]
    random_alone: Tensor = field(repr=False)
    random_without: Tensor = field(repr=False)
    by_gradient: dict[str, float]
    cpr: float
    cmd: float

    @property
    def p_sufficient(self) -> float:
        """Share of random circuits that do as well alone."""
        return p_value(self.alone["loss"], self.random_alone, lower_is_better=True)

    @property
    def p_necessary(self) -> float:
        """Share of random circuits that are missed as much."""
        return p_value(self.without["loss"], self.random_without, lower_is_better=False)

    @property
    def ncq(self) -> float:
        """Accuracy kept times the share of nodes left out."""
        if not self.full["accuracy"]:
            return math.nan
        return self.alone["accuracy"] / self.full["accuracy"] * (1 - float(self.mask.double().mean()))

    @property
    def verdict(self) -> str:
        """Say in words what it is."""
        by_chance, n = self.empty["accuracy"], self.full["images"]
        if self.full["accuracy"] - by_chance < SURE * math.sqrt(0.25 / n):
            return "the model cannot do it"
        if not self.reached:
            return "no size reaches the target"
        if not bool(self.mask.any()):
            return "constants reach the target"
        if self.p_sufficient > 0.05:
            return "no better than chance"
        return "sufficient, necessary" if self.p_necessary <= 0.05 else "sufficient only"


class Validator:
    """Validates circuits.

    Args:
        model: The model.
        nodes: Its nodes.
        constants: What replaces nodes `(1 or T, n)`.
        select: Evaluates on the images that sizes are chosen on.
        report: Evaluates on those that are reported on.
        draws: Random circuits for each.
        seed: Their seed.
    """

    def __init__(
        self,
        model: nn.Module,
        nodes: Nodes,
        constants: Tensor,
        select: Evaluation,
        report: Evaluation,
        *,
        draws: int = 20,
        seed: int = 0,
    ) -> None:
        self.nodes = nodes
        self.constants = constants
        self.select = select
        self.report = report
        self.draws = draws
        self.seed = seed
        self.wiring: Wiring = wiring(model, nodes)

    def sizes(self, scores: Tensor, tasks: Sequence[int], target: Target) -> tuple[Found, Tensor]:
        """Return the sizes of circuits `(P,)`, and their targets; chosen on images that are not reported on.

        Args:
            scores: Switches of larger scores are kept first, `(P, n_switches)`.
            tasks: The task of each circuit.
            target: What they have to reach.
        """
        every = list(range(len(self.select.tasks)))
        nothing = torch.zeros(len(every), self.nodes.n, dtype=torch.bool)
        targets = target.of(self.select.whole().loss, self.select(nothing, every, self.constants).loss)[list(tasks)]
        place = ranking(scores)  # (P, n_switches)

        def losses(circuits: Tensor, sizes: Tensor) -> Tensor:
            masks = self.nodes.expand(place[circuits] < sizes[:, None])
            return self.select(masks, [tasks[p] for p in circuits.tolist()], self.constants).loss

        return smallest_circuits(losses, self.nodes.n_switches, targets), targets

    def __call__(self, scores: Tensor, gradients: Tensor, tasks: Sequence[int], target: Target) -> list[Validated]:
        """Return what is known of circuits.

        Args:
            scores: Of switches `(P, n_switches)`.
            gradients: Attribution of switches to the loss of each circuit's task `(P, n_switches)`.
            tasks: The task of each circuit.
            target: The loss that they have to reach.
        """
        found, targets = self.sizes(scores, tasks, target)
        sizes = torch.where(found.smallest < 0, self.nodes.n_switches, found.smallest)
        masks = self.nodes.expand(ranking(scores) < sizes[:, None])  # (P, n)
        rivals = self.nodes.expand(ranking(gradients) < sizes[:, None])
        nothing = torch.zeros_like(masks)
        alone, without, empty, by_gradient = (
            self.report(part, tasks, self.constants) for part in (masks, ~masks, nothing, rivals)
        )
        whole = self.report.whole()
        validated = []
        for p, task in enumerate(tasks):
            drawn_alone, drawn_without = self._random(masks[p], task)
            cpr, cmd = self._areas(ranking(scores[p : p + 1]), task)
            validated.append(
                Validated(
                    mask=masks[p],
                    reached=int(found.smallest[p]) >= 0,
                    target=float(targets[p]),
                    sizes=(int(found.smallest[p]), int(found.safe[p])),
                    alone=_row(alone, p),
                    without=_row(without, p),
                    full=_row(whole, task),
                    empty=_row(empty, p),
                    random_alone=drawn_alone,
                    random_without=drawn_without,
                    by_gradient=_row(by_gradient, p),
                    cpr=cpr,
                    cmd=cmd,
                )
            )
        return validated

    def _random(self, mask: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """Return the losses of random circuits alone, and of the model without them."""
        drawn = random_circuits(mask, self.nodes, self.draws, seed=self.seed)
        tasks = [task] * self.draws
        return self.report(drawn, tasks, self.constants).loss, self.report(~drawn, tasks, self.constants).loss

    def _areas(self, place: Tensor, task: int) -> tuple[float, float]:
        """Return CPR and CMD of nested circuits."""
        sizes = (torch.tensor(SHARES, dtype=torch.float64) * self.nodes.n_switches).round().long()
        masks = self.nodes.expand(place < sizes[:, None])
        ends = torch.zeros(1, self.nodes.n, dtype=torch.bool)
        margins = self.report(torch.cat([masks, ends]), [task] * (len(sizes) + 1), self.constants).margin
        curve = faithfulness(margins[:-1], self.report.whole().margin[task], margins[-1])
        return areas(torch.tensor(SHARES, dtype=torch.float64), curve)

    def counts(self, masks: Tensor) -> tuple[EdgeCounts, Tensor]:
        """Return nodes and edges of circuits `(P, n)`, and how many of their nodes are live `(P,)`."""
        live = live_nodes(self.wiring, masks, self.constants.mean(0))
        return count_edges(self.wiring, masks), live.sum(1)


def _row(scores: Scores, p: int) -> dict[str, float]:
    return {name: float(column[p]) for name, column in scores._asdict().items()}
