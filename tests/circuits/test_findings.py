"""Numbers of all circuits together by hand: geometric means, ratios, and what they leave out."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from impact_lightning.circuits.edges import count_edges, wiring
from impact_lightning.circuits.findings import Finding, ModelCircuits, _geometric, comparison, findings
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.overlap import Overlap
from impact_lightning.circuits.verdict import PASSED, UNABLE, Control
from tests.circuits.test_edges import random_masks, vit
from tests.circuits.test_validation import validated

TASKS, SEEDS = ["cat or not", "cat or not", "dog or not"], [0, 1, 0]
CONTROLS = {"nonsense labels": Control(0.4, 0.3, 9), "permuted weights": Control(0.6, 0.5, -1)}
LEFT_OUT = "1 circuits that are none are left out: see their verdicts"


def circuits(
    name: str = "dense", *, density: float = 1.0, seed: int = 1, share: float = 0.3, **more: Any
) -> ModelCircuits:
    """Return three circuits of two tasks of a model."""
    model = vit(density=density)
    nodes = Nodes(model)
    masks = random_masks(nodes, 3, share=share, seed=seed)
    fields: dict[str, Any] = {
        **{"model": name, "tasks": TASKS, "seeds": SEEDS, "counts": count_edges(wiring(model, nodes), masks)},
        "validated": [validated(mask=mask, switches=mask) for mask in masks],
        "controls": [CONTROLS] * 3,
        "live": masks.sum(1) - 4,
        "stability": {"cat or not": Overlap(0.4, 0.2, 0.3, 0.1, 1), "dog or not": None},
        "sharing": Overlap(0.3, 0.25, 0.2, 0.15, 1),
        "verdicts": [PASSED, "fails necessity", PASSED],
    }
    return ModelCircuits(**{**fields, **more})


def table(found: ModelCircuits) -> dict[tuple[str, str], Finding]:
    every = list(findings(found))
    by_name = {(one.of, one.measure): one for one in every}
    assert len(by_name) == len(every)
    return by_name


def unreached(found: ModelCircuits, *which: int) -> ModelCircuits:
    """Return the same where some circuits reach no target."""
    validated = [replace(one, reached=p not in which) for p, one in enumerate(found.validated)]
    return replace(found, validated=validated)


# ------------------------------------------------------------------------------------------------------ each circuit


def test_every_number_of_a_circuit_is_found() -> None:
    found = circuits()
    every = table(found)
    one, of = found.validated[1], "dense/cat or not/seed 1"
    expected = {
        **{"nodes": int(found.counts.nodes[1]), "live_nodes": int(found.live[1]), "edges": int(found.counts.edges[1])},
        "edges_over_density": float(found.counts.edges[1] / found.counts.density[1]),
        **{"query_key_paths": int(found.counts.paths[1]), "density_ratio": float(found.counts.density_ratio[1])},
        **{"accuracy_alone": 0.9, "accuracy_without": 0.5, "accuracy_full": 1.0, "divergence": 0.1, "agreement": 0.9},
        **{"p_sufficient": 1 / 21, "p_necessary": 1 / 21, "ncq": one.ncq, "cpr": 0.9, "cmd": 0.1, "idle": 0.0},
        **{"completeness": -0.25, "rise_without": 3.0 - 0.05},
        **{"loss_to_reach": 0.2, "loss_without_beside_others": 3.0, "loss_by_gradient": 0.65, "loss_zero": 0.3},
        **{"loss_alone": 0.1, "loss_without": 3.0, "loss_full": 0.05, "loss_empty": 0.7},
        **{"loss_of_nonsense_labels": 0.4, "switches_of_nonsense_labels": 9, "loss_of_permuted_weights": 0.6},
        **{"learnt_loss_of_nonsense_labels": 0.3, "learnt_loss_of_permuted_weights": 0.5},
    }
    for measure, value in expected.items():
        assert every[of, measure].value == pytest.approx(value), measure
        assert every[of, measure].n == 256
        assert every[of, measure].notes == ("fails necessity",)
    assert math.isnan(every[of, "switches_of_permuted_weights"].value)  # no size reaches the target
    assert {measure for name, measure in every if name == of} == {*expected, "switches_of_permuted_weights"}


@pytest.mark.parametrize(
    ("measure", "null"),
    [
        ("density_ratio", 1.0),
        ("loss_alone", 0.75),
        ("loss_without", 0.55),
        ("loss_without_beside_others", 0.7),
        ("loss_by_gradient", 0.1),
        ("accuracy_alone", 0.5),
        ("accuracy_without", 1.0),
        ("loss_of_nonsense_labels", 0.1),
        ("learnt_loss_of_nonsense_labels", 0.4),
        ("learnt_loss_of_permuted_weights", 0.6),
        ("cpr", 0.0),
        ("cmd", 1.0),
        ("completeness", 1.0),
        ("rise_without", 0.01),
    ],
)
def test_numbers_stand_beside_what_they_are_where_there_is_nothing(measure: str, null: float) -> None:
    found = table(circuits())["dense/dog or not/seed 0", measure].null
    assert found is not None
    assert found.value == pytest.approx(null)


def test_names_of_measures_are_words() -> None:
    scores = {**validated().scores, "mean prefix patch": validated().scores["alone"], "relaxed 25": {}}
    scores["relaxed 25"] = validated().scores["without"]
    found = circuits(validated=[validated(scores=scores)] * 3)
    for _, measure in table(found):
        assert measure.replace("_", "").isalnum()
        assert measure == measure.lower()
    assert ("dense/dog or not/seed 0", "loss_mean_prefix_patch") in table(found)


def test_overlaps_stand_beside_their_chance() -> None:
    every = table(circuits())
    for of, measure, value, chance in (
        ("dense/cat or not", "stability", 0.4, 0.2),
        ("dense/cat or not", "stability_of_edges", 0.3, 0.1),
        ("dense", "shared_between_tasks", 0.3, 0.25),
        ("dense", "shared_between_tasks_of_edges", 0.2, 0.15),
    ):
        null = every[of, measure].null
        assert null is not None
        assert (every[of, measure].value, null.value) == (value, chance)
    assert ("dense/dog or not", "stability") not in every


# --------------------------------------------------------------------------------------------------- geometric means


T_OF_ONE = 12.706204736  # the 97.5 % quantile of Student's t of one degree of freedom


def by_task(values: list[float]) -> list[float]:
    """Return the geometric mean over seeds of each task."""
    return [math.sqrt(values[0] * values[1]), values[2]]


@pytest.mark.parametrize("size", ["nodes", "live_nodes", "edges", "edges_over_density"])
def test_geometric_means_are_over_seeds_and_then_over_tasks(size: str) -> None:
    found = circuits(density=0.4)
    one = table(found)["dense", f"{size}_geometric_mean"]
    first, second = by_task(found.sizes()[size].tolist())
    assert one.value == pytest.approx(math.sqrt(first * second))
    assert one.n == 2
    assert one.notes == ()
    assert one.interval is not None
    assert "tasks" in one.interval.how
    assert one.interval.how == "Student's t of logarithms, 2 tasks"
    half = T_OF_ONE * abs(math.log(first / second)) / 2  # the standard error of two is half of their difference
    assert one.interval.low == pytest.approx(one.value * math.exp(-half))
    assert one.interval.high == pytest.approx(one.value * math.exp(half))


def test_the_interval_over_tasks_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        logs = dict(enumerate(generator.normal(2.0, 0.7, 4).tolist()))
        interval = _geometric("x", {str(task): log for task, log in logs.items()}, "", None, ()).interval
        assert interval is not None
        held += interval.low <= math.exp(2.0) <= interval.high
    assert 920 <= held <= 975  # 950 are expected, with a standard deviation of 7


def test_circuits_that_reach_nothing_are_left_out_of_means_and_counted() -> None:
    found = circuits()
    nodes = found.sizes()["nodes"].tolist()
    one = table(unreached(found, 1))["dense", "nodes_geometric_mean"]
    assert one.value == pytest.approx(math.sqrt(nodes[0] * nodes[2]))
    assert one.notes == (LEFT_OUT,)
    alone = table(unreached(found, 2))["dense", "nodes_geometric_mean"]
    assert alone.value == pytest.approx(math.sqrt(nodes[0] * nodes[1]))
    assert (alone.n, alone.interval) == (1, None)


def test_where_no_circuit_reaches_its_target_there_is_no_mean() -> None:
    assert not any("geometric_mean" in measure for _, measure in table(unreached(circuits(), 0, 1, 2)))


def test_empty_circuits_are_no_circuits() -> None:
    assert not any("geometric_mean" in measure for _, measure in table(circuits(share=0.0)))
    found = circuits()
    nodes = found.sizes()["nodes"].tolist()
    empty = replace(found.validated[0], mask=torch.zeros_like(found.validated[0].mask))
    one = table(replace(found, validated=[empty, *found.validated[1:]]))["dense", "nodes_geometric_mean"]
    assert one.value == pytest.approx(math.sqrt(nodes[1] * nodes[2]))
    assert one.notes == (LEFT_OUT,)


def test_circuits_of_what_a_model_cannot_do_are_left_out() -> None:
    found = circuits(verdicts=[PASSED, UNABLE, "fails necessity"])
    nodes = found.sizes()["nodes"].tolist()
    assert found.counted() == [0, 2]
    one = table(found)["dense", "nodes_geometric_mean"]
    assert one.value == pytest.approx(math.sqrt(nodes[0] * nodes[2]))
    assert one.notes == (LEFT_OUT,)


def test_circuits_that_fail_checks_are_counted() -> None:
    verdicts = ["fails sufficiency, stability", "too few images to tell", PASSED]
    assert circuits(verdicts=verdicts).counted() == [0, 1, 2]
    assert unreached(circuits(verdicts=verdicts), 1).counted() == [0, 2]


def test_a_circuit_without_edges_counts_as_one() -> None:
    found = circuits()
    found = replace(found, counts=found.counts._replace(edges=torch.zeros(3, dtype=torch.long)))
    assert table(found)["dense", "edges_geometric_mean"].value == 1


# -------------------------------------------------------------------------------------------------------- comparison


@pytest.mark.parametrize("size", ["nodes", "live_nodes", "edges", "edges_over_density"])
def test_ratios_are_those_of_tasks(size: str) -> None:
    first, second = circuits(), circuits("sparse", density=0.3, seed=5)
    found = {one.measure: one for one in comparison(second, first)}
    ours, theirs = (by_task(one.sizes()[size].tolist()) for one in (second, first))
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    one = found[f"{size}_ratio"]
    assert one.of == "sparse / dense"
    assert one.value == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
    assert one.interval is not None
    half = T_OF_ONE * abs(math.log(ratios[0] / ratios[1])) / 2
    assert one.interval.low == pytest.approx(one.value * math.exp(-half))
    assert one.interval.high == pytest.approx(one.value * math.exp(half))
    assert one.null is not None
    density = float(second.counts.density[0] / first.counts.density[0])
    assert one.null.value == pytest.approx(density if size == "edges" else 1.0)
    assert density < 0.5


def test_tasks_in_which_one_model_reaches_nothing_are_left_out_and_counted() -> None:
    first, second = circuits(), circuits("sparse", seed=5)
    nodes = [one.sizes()["nodes"].tolist() for one in (second, first)]
    for ours, theirs in ((unreached(second, 2), first), (second, unreached(first, 2))):
        one = next(iter(comparison(ours, theirs)))
        assert one.measure == "nodes_ratio"
        assert one.value == pytest.approx(by_task(nodes[0])[0] / by_task(nodes[1])[0])
        assert one.notes == ("1 tasks in which one of them has no circuit are left out",)
        assert one.interval is None


def test_a_seed_that_reaches_nothing_is_left_out_of_its_task() -> None:
    first, second = circuits(), circuits("sparse", seed=5)
    one = next(iter(comparison(unreached(second, 0), first)))
    ours, theirs = (found.sizes()["nodes"].tolist() for found in (second, first))
    ratios = [ours[1] / math.sqrt(theirs[0] * theirs[1]), ours[2] / theirs[2]]
    assert one.value == pytest.approx(math.sqrt(ratios[0] * ratios[1]))


def test_models_that_have_no_task_in_common_are_not_compared() -> None:
    assert not list(comparison(unreached(circuits("sparse"), 0, 1), unreached(circuits(), 2)))


def test_random_circuits_of_a_sparse_model_have_edges_as_the_null_says() -> None:
    """As many nodes in both, chosen without regard to weights: edges fall with the density."""
    first, second = (
        replace(circuits(name, density=density, share=0.9, seed=seed))
        for name, density, seed in (("dense", 1.0, 1), ("sparse", 0.3, 1))
    )
    one = next(one for one in comparison(second, first) if one.measure == "edges_ratio")
    assert one.null is not None
    assert one.value == pytest.approx(one.null.value, rel=0.05)
    assert torch.equal(first.counts.nodes, second.counts.nodes)
