"""Every number of a validated circuit is what direct evaluations of its masks give."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.controls import random_circuits
from impact_lightning.circuits.edges import count_edges
from impact_lightning.circuits.evaluation import Evaluation, Filling, Scores
from impact_lightning.circuits.live import live_nodes
from impact_lightning.circuits.minimality import Minimality, clean
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.resampling import Resampled
from impact_lightning.circuits.size import GRID, ranking, smallest_circuits
from impact_lightning.circuits.validation import RELAXED, SHARES, Validated, Validator, at_size, of_circuits
from impact_lightning.results import Interval
from tests.circuits.test_evaluation import TASKS, Held, by_hand
from tests.circuits.test_fold import vit

DRAWS, SEED = 20, 4
OWN = [0, 3, 0]  # the task of each circuit
ELSEWHERE = [0, 1, 3]
COLUMNS = ("loss", "accuracy", "margin", "divergence", "agreement", "images")


class Watched(Evaluation):
    """Remembers which masks it has looked at."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[tuple[Tensor, list[int]]] = []

    def __call__(self, masks: Tensor, tasks: Sequence[int], filling: Filling) -> Scores:
        """Return how well circuits do."""
        self.asked.append((masks.clone(), list(tasks)))
        return super().__call__(masks, tasks, filling)


class Case(NamedTuple):
    """Circuits of a tiny model, and what is known of them."""

    model: Any
    nodes: Nodes
    run: Validator
    report: Watched
    mu: Tensor
    scores: Tensor
    rivals: dict[str, Tensor]
    targets: Tensor
    found: list[Validated]

    def by_hand(self, mask: Tensor, task: int, mu: Tensor | None = None) -> dict[str, float]:
        """Return the scores of a circuit, image by image."""
        row = by_hand(self.model, self.nodes, mask, task, self.mu if mu is None else mu, alike=True)
        return dict(zip(COLUMNS, row[:6], strict=True))

    def expand(self, switches: Tensor) -> Tensor:
        return torch.stack([switches[int(switch)] for switch in self.nodes.switch_of])

    def largest(self, scores: Tensor, k: int) -> Tensor:
        """Return the switches of the k largest scores."""
        order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
        return torch.tensor([i in order[:k] for i in range(len(scores))])


@pytest.fixture(scope="module", params=["channel", pytest.param("head", marks=pytest.mark.slow)])
def case(request: pytest.FixtureRequest) -> Case:
    model = vit()
    nodes = Nodes(model, granularity=request.param)
    generator = torch.Generator().manual_seed(2)
    mu = torch.randn(1, nodes.n, dtype=torch.float64, generator=generator)
    scores = torch.randn(3, nodes.n_switches, generator=generator)
    rivals = {name: torch.randn(3, nodes.n_switches, generator=generator) for name in ("by gradient", "by magnitude")}
    held: Any = [Held(13), Held(alike=True)]
    select, report = Evaluation(model, nodes, TASKS, held[0]), Watched(model, nodes, TASKS, held[1])
    fillings: dict[str, Filling] = {"off: zero": torch.zeros_like(mu), "off: other": Resampled("other", SEED)}
    run = Validator(model, nodes, select, report, fillings, draws=DRAWS, seed=SEED)
    grid = torch.logspace(0, math.log10(nodes.n_switches), GRID).round().long()[8:]  # what the search looks at
    nested = nodes.expand(ranking(scores[:1]) < grid[:, None])
    best = float(select(nested, [0] * len(grid), mu).loss.min())
    far = float(select(torch.zeros_like(nested[:1]), [3], mu).loss)
    targets = torch.tensor([best, far / 2, -1.0], dtype=torch.float64)  # the last cannot be reached
    report.asked.clear()
    found = list(run(scores, rivals, OWN, ELSEWHERE, mu, targets))
    return Case(model, nodes, run, report, mu, scores, rivals, targets, found)


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


# ------------------------------------------------------------------------------------------------------------- sizes


def test_sizes_are_those_of_a_search_on_other_images(case: Case) -> None:
    def losses(circuits: Tensor, sizes: Tensor) -> Tensor:
        masks = [case.largest(case.scores[p], k) for p, k in zip(circuits.tolist(), sizes.tolist(), strict=True)]
        rows = [case.run.select(case.expand(m)[None], [OWN[p]], case.mu) for m, p in zip(masks, circuits, strict=True)]
        return torch.cat([row.loss for row in rows])

    expected = smallest_circuits(losses, case.nodes.n_switches, case.targets)
    found = case.run.sizes(case.scores, OWN, case.mu, case.targets)
    assert found.smallest.tolist() == expected.smallest.tolist()
    assert found.safe.tolist() == expected.safe.tolist()
    assert [one.sizes for one in case.found] == list(zip(found.smallest.tolist(), found.safe.tolist(), strict=True))


def test_circuits_are_those_of_their_sizes_and_where_none_reaches_the_target_the_whole_model(case: Case) -> None:
    assert [one.reached for one in case.found] == [True, True, False]
    assert [one.task for one in case.found] == OWN
    assert [one.target for one in case.found] == case.targets.tolist()
    for p, one in enumerate(case.found):
        k = one.sizes[0] if one.reached else case.nodes.n_switches
        switches = case.largest(case.scores[p], k)
        if one.reached and k:
            switches = clean(switches, case.nodes, case.run.select, OWN[p], case.mu, one.target)
        assert torch.equal(one.switches, switches)
        assert torch.equal(one.mask, case.expand(one.switches))
        if one.reached:
            assert float(case.run.select(one.mask[None], [OWN[p]], case.mu).loss) <= one.target
    assert all(0 < one.mask.sum() < case.nodes.n for one in case.found[:2])


def test_a_circuit_of_a_given_size_is_looked_at(case: Case) -> None:
    for k in (0, 7, 100):
        mask = case.expand(case.largest(case.scores[0], k))
        found = at_size(case.report, case.scores[:1], k, 1, case.mu)
        assert found == pytest.approx(case.by_hand(mask, 1)["loss"], rel=1e-9)
        select = float(case.run.select(mask[None], [1], case.mu).loss)  # images of another split
        assert at_size(case.run.select, case.scores[:1], k, 1, case.mu) == pytest.approx(select, rel=1e-9)


# -------------------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize("p", range(3))
def test_conditions_are_those_of_their_masks(case: Case, p: int) -> None:
    one = case.found[p]
    everything = torch.ones(case.nodes.n, dtype=torch.bool)
    same(one.scores["full"], case.by_hand(everything, OWN[p]))
    same(one.scores["alone"], case.by_hand(one.mask, OWN[p]))
    same(one.scores["without"], case.by_hand(~one.mask, OWN[p]))
    same(one.scores["empty"], case.by_hand(~everything, OWN[p]))
    same(one.scores["off: zero"], case.by_hand(one.mask, OWN[p], torch.zeros_like(case.mu)))
    resampled = case.report(one.mask[None], [OWN[p]], Resampled("other", SEED))
    same(one.scores["off: other"], {name: float(getattr(resampled, name)) for name in COLUMNS})
    for name, scores in case.rivals.items():
        rival = case.largest(scores[p], int(one.switches.sum()))
        assert rival.sum() == one.switches.sum()
        same(one.scores[name], case.by_hand(case.expand(rival), OWN[p]))


@pytest.mark.parametrize("share", RELAXED)
@pytest.mark.parametrize("p", range(3))
def test_a_share_of_the_complement_is_ablated(case: Case, p: int, share: float) -> None:
    one = case.found[p]
    row = one.scores[f"relaxed {round(100 * share)}"]
    left = int((~one.switches).sum())
    asked = [masks[0] for masks, tasks in case.report.asked if tasks == [OWN[p]]]
    fits = [
        mask
        for mask in asked
        if (mask | ~one.mask).all() and int((~mask[_first(case.nodes)]).sum()) == round(share * left)
    ]
    assert any(case.by_hand(mask, OWN[p]) == pytest.approx(row, rel=1e-9, abs=1e-9) for mask in fits)


def _first(nodes: Nodes) -> Tensor:
    """Return the first node of each switch."""
    return torch.tensor([int((nodes.switch_of == switch).nonzero()[0]) for switch in range(nodes.n_switches)])


def test_shares_of_a_small_complement_are_rounded_to_switches() -> None:
    model = vit()
    nodes = Nodes(model)
    held: Any = Held(alike=True)
    report = Watched(model, nodes, TASKS, held)
    run = Validator(model, nodes, report, report, {}, draws=DRAWS)
    for left, expected in ((1, [0, 0, 1]), (2, [0, 1, 2]), (4, [1, 2, 3]), (8, [2, 4, 6])):
        switches = torch.arange(nodes.n_switches) >= left
        report.asked.clear()
        run._relaxed(switches, 0, torch.zeros(1, nodes.n, dtype=torch.float64))
        off = [~masks[0] for masks, _ in report.asked]
        assert [int(one.sum()) for one in off] == expected
        assert all((smaller <= larger).all() for smaller, larger in pairwise(off))  # nested


# ------------------------------------------------------------------------------------------------------------ chance


@pytest.mark.parametrize("p", range(3))
def test_random_circuits_are_looked_at_one_by_one(case: Case, p: int) -> None:
    one = case.found[p]
    anywhere, outside = (
        random_circuits(one.switches, case.nodes, DRAWS, seed=SEED, outside=outside) for outside in (False, True)
    )
    assert one.random_alone.shape == one.random_without.shape == one.outside_without.shape == (DRAWS,)
    for r in (0, 7, 19):
        mask = case.expand(anywhere[r])
        assert float(one.random_alone[r]) == pytest.approx(case.by_hand(mask, OWN[p])["loss"], rel=1e-9)
        assert float(one.random_without[r]) == pytest.approx(case.by_hand(~mask, OWN[p])["loss"], rel=1e-9)
        others = case.expand(outside[r])
        assert float(one.outside_without[r]) == pytest.approx(case.by_hand(~others, OWN[p])["loss"], rel=1e-9)


def test_tasks_of_labels_are_told_from_those_of_predictions(case: Case) -> None:
    assert [one.task_is_of_labels for one in case.found] == [TASKS[task].readout != "kl" for task in OWN]
    assert {one.task_is_of_labels for one in case.found} == {True, False}


def test_p_values_are_uniform_where_a_circuit_is_a_random_one(case: Case) -> None:
    """Draws anywhere are exchangeable with a circuit that is one of them: so is the draw that is missed most."""
    one = case.found[0]
    every = [replace(one, scores=with_loss(one, "without", float(loss))) for loss in one.random_without]
    ranks = sorted(round(circuit.p_necessary * (1 + DRAWS)) for circuit in every)
    losses = one.random_without.tolist()
    assert ranks == sorted(1 + sum(other >= loss for other in losses) for loss in losses)
    assert min(ranks) == 2  # a circuit that is a draw is never better than all of them


def with_loss(one: Validated, name: str, loss: float) -> dict[str, Any]:
    return {**one.scores, name: {**one.scores[name], "loss": loss}}


def test_p_values_count_random_circuits(case: Case) -> None:
    for one in case.found:
        alone, without = one.scores["alone"]["loss"], one.scores["without"]["loss"]
        better = sum(loss <= alone for loss in one.random_alone.tolist())
        missed = sum(loss >= without for loss in one.random_without.tolist())
        assert one.p_sufficient == (1 + better) / (1 + DRAWS)
        assert one.p_necessary == (1 + missed) / (1 + DRAWS)


def test_intervals_hold_the_mean_loss(case: Case) -> None:
    for one in case.found:
        assert one.intervals.keys() == {"full", "alone", "without"}
        for name, interval in one.intervals.items():
            assert interval.low <= one.scores[name]["loss"] <= interval.high
            assert "images" in interval.how
        assert one.intervals["alone"].low < one.intervals["alone"].high


# ----------------------------------------------------------------------------------------------------- other numbers


@pytest.mark.parametrize("p", range(3))
def test_areas_are_those_of_the_curve_of_faithfulness(case: Case, p: int) -> None:
    one = case.found[p]
    full, empty = one.scores["full"]["margin"], one.scores["empty"]["margin"]
    curve = []
    for share in SHARES:
        mask = case.expand(case.largest(case.scores[p], round(share * case.nodes.n_switches)))
        curve.append((case.by_hand(mask, OWN[p])["margin"] - empty) / (full - empty))
    steps = list(zip(SHARES, SHARES[1:], curve, curve[1:], strict=False))
    cpr = sum((b - a) * (f + g) / 2 for a, b, f, g in steps)
    cmd = sum((b - a) * (abs(1 - f) + abs(1 - g)) / 2 for a, b, f, g in steps)
    assert one.cpr == pytest.approx(cpr, rel=1e-9)
    assert one.cmd == pytest.approx(cmd, rel=1e-9)
    assert curve[-1] == pytest.approx(1)


def test_completeness_and_ncq_by_hand(case: Case) -> None:
    for one in case.found:
        without, full, empty = (one.scores[name]["margin"] for name in ("without", "full", "empty"))
        assert one.completeness == pytest.approx((without - empty) / (full - empty))
        kept = one.scores["alone"]["accuracy"] / one.scores["full"]["accuracy"]
        assert one.ncq == pytest.approx(kept * (1 - int(one.mask.sum()) / case.nodes.n))
    assert case.found[2].completeness == pytest.approx(0, abs=1e-12)  # nothing is left of the whole model


@pytest.mark.parametrize("p", range(3))
def test_what_a_circuit_does_elsewhere_is_the_mean_rise_of_other_tasks(case: Case, p: int) -> None:
    one = case.found[p]
    everything = torch.ones(case.nodes.n, dtype=torch.bool)
    rises = [
        case.by_hand(~one.mask, task)["loss"] - case.by_hand(everything, task)["loss"]
        for task in ELSEWHERE
        if task != OWN[p]
    ]
    assert len(rises) == 2
    assert one.elsewhere == pytest.approx(sum(rises) / 2, rel=1e-9, abs=1e-9)


def test_of_a_single_task_nothing_is_known_elsewhere(case: Case) -> None:
    (one,) = case.run(case.scores[:1], {}, [0], [0], case.mu, case.targets[:1])
    assert math.isnan(one.elsewhere)
    assert one.scores.keys() == case.found[0].scores.keys() - case.rivals.keys()


def test_nodes_and_edges_are_counted(case: Case) -> None:
    masks = torch.stack([one.mask for one in case.found])
    counts, live = case.run.counts(masks, case.mu)
    assert counts.nodes.tolist() == masks.sum(1).tolist()
    assert torch.equal(counts.edges, count_edges(case.run.wiring, masks).edges)
    assert live.tolist() == live_nodes(case.run.wiring, masks, case.mu[0]).sum(1).tolist()


def test_circuits_are_validated_alike_beside_others_and_with_constants_of_their_own(case: Case) -> None:
    tables = torch.stack([case.mu, case.mu + 0.3, case.mu])  # (P, 1, n)
    together = list(case.run(case.scores, case.rivals, OWN, ELSEWHERE, tables, case.targets))
    one = case.found[0]
    assert torch.equal(together[0].switches, one.switches)
    assert together[0].scores == one.scores
    assert torch.equal(together[0].random_alone, one.random_alone)
    same(together[1].scores["empty"], case.by_hand(torch.zeros(case.nodes.n, dtype=torch.bool), 3, case.mu + 0.3))


def test_constants_of_circuits_are_those_of_their_numbers() -> None:
    tables = torch.randn(4, 5, 6)
    assert torch.equal(of_circuits(tables, [2]), tables[2])  # type: ignore[arg-type]
    assert torch.equal(of_circuits(tables, [3, 3, 0]), tables[[3, 3, 0]])  # type: ignore[arg-type]
    assert of_circuits(tables[0], [3]) is tables[0] or torch.equal(of_circuits(tables[0], [3]), tables[0])  # type: ignore[arg-type]
    how = Resampled("any", 0)
    assert of_circuits(how, [1, 2]) is how


# ---------------------------------------------------------------------------------------------------- words of a mask


def validated(
    *,
    alone: float = 0.1,
    without: float = 3.0,
    full: float = 1.0,
    empty: float = 0.5,
    gradient: float = 0.65,
    zero: float = 0.3,
    **more: Any,
) -> Validated:
    """Return a circuit of two of ten nodes, better than chance alone and missed more than chance."""
    named = {"alone": (alone, 0.9, 2.0), "without": (without, 0.5, 0.0), "full": (0.05, full, 2.5)}
    named |= {"empty": (0.7, empty, 0.5), "by gradient": (gradient, 0.6, 1.0), "zero": (zero, 0.8, 1.5)}
    rest = {"divergence": 0.1, "agreement": 0.9, "images": 256.0}
    mask = torch.tensor([True] * 2 + [False] * 8)
    fields: dict[str, Any] = {
        **{"task": 0, "task_is_of_labels": True, "switches": mask, "mask": mask, "reached": True, "target": 0.2},
        "sizes": (2, 2),
        "scores": {
            name: {"loss": loss, "accuracy": accuracy, "margin": margin, **rest}
            for name, (loss, accuracy, margin) in named.items()
        },
        "intervals": {
            name: Interval(loss - 0.5, loss + 0.5, "by hand") for name, loss in (("alone", alone), ("without", without))
        },
        "random_alone": torch.linspace(0.5, 1, 20),
        "random_without": torch.linspace(0.1, 1, 20),
        "outside_without": torch.linspace(0.2, 1.2, 20),
        **{"cpr": 0.9, "cmd": 0.1, "minimality": Minimality(0.0, 2), "elsewhere": 0.01},
    }
    return Validated(**{**fields, **more})


def test_p_values_of_a_circuit_are_of_its_losses() -> None:
    one = validated(alone=0.5)
    assert one.p_sufficient == 2 / 21  # one draw is as good
    assert one.p_necessary == 1 / 21


def test_ncq_is_the_accuracy_kept_times_the_nodes_left_out() -> None:
    assert validated(full=0.95).ncq == pytest.approx(0.9 / 0.95 * 0.8)


def test_ncq_of_a_model_that_is_always_wrong_is_undefined() -> None:
    assert math.isnan(validated(full=0.0).ncq)


def test_completeness_is_what_the_complement_still_has() -> None:
    assert validated().completeness == pytest.approx((0.0 - 0.5) / (2.5 - 0.5))
