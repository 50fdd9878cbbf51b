"""Switches that are not missed are found one by one, as a loop that leaves each out would."""

from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.evaluation import Evaluation, Filling
from impact_lightning.circuits.minimality import IDLE, TRIED, clean, minimality
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.resampling import Resampled
from tests.circuits.test_evaluation import evaluation
from tests.circuits.test_fold import vit

HOW: list[Any] = [
    {},
    *(pytest.param(how, marks=pytest.mark.slow) for how in ({"granularity": "head"}, {"tie_qk": True})),
]


def made(how: dict[str, Any]) -> tuple[Nodes, Evaluation]:
    model = vit()
    nodes = Nodes(model, **how)
    return nodes, evaluation(model, nodes)


def some(nodes: Nodes, n: int, seed: int = 0) -> Tensor:
    """Return `n` switches at random."""
    return torch.rand(nodes.n_switches, generator=torch.Generator().manual_seed(seed)).argsort().argsort() < n


def loss(on: set[int], nodes: Nodes, run: Evaluation, task: int, filling: Filling) -> float:
    mask = torch.tensor([int(nodes.switch_of[node]) in on for node in range(nodes.n)])
    return float(run(mask[None], [task], filling).loss)


def rises(on: set[int], nodes: Nodes, run: Evaluation, task: int, filling: Filling) -> dict[int, float]:
    whole = loss(on, nodes, run, task, filling)
    return {switch: loss(on - {switch}, nodes, run, task, filling) / whole - 1 for switch in sorted(on)}


def constants(nodes: Nodes) -> Tensor:
    return torch.randn(1, nodes.n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("task", [0, 3])
def test_the_idle_share_is_that_of_a_loop(how: dict[str, Any], task: int) -> None:
    nodes, run = made(how)
    shares = []
    for filling in (constants(nodes), Resampled("any", 0)):
        on = some(nodes, 50)
        expected = rises(set(on.nonzero().flatten().tolist()), nodes, run, task, filling)
        found = minimality(on, nodes, run, task, filling, seed=0)
        assert found.tried == 50
        assert found.idle == sum(rise < IDLE for rise in expected.values()) / 50
        shares.append(found.idle)
    assert min(shares) < 1


def test_of_a_large_circuit_some_switches_are_drawn() -> None:
    nodes, run = made({})
    found = [minimality(some(nodes, 200), nodes, run, 0, constants(nodes), seed=seed) for seed in (0, 0, 1)]
    assert {one.tried for one in found} == {TRIED} == {64}
    assert found[0] == found[1]
    assert len(set(found)) > 1


def test_the_empty_circuit_has_nothing_to_leave_out() -> None:
    nodes, run = made({})
    found = minimality(some(nodes, 0), nodes, run, 0, constants(nodes), seed=0)
    assert found.tried == 0
    assert found.idle != found.idle


# ---------------------------------------------------------------------------------------------------------- cleaning


def literal_clean(on: set[int], target: float, *of: Any) -> set[int]:
    """Leave out switches that are not missed, least missed first, as long as the target is reached."""
    one_by_one = rises(on, *of)
    left = set(on)
    for switch in sorted(one_by_one, key=lambda switch: one_by_one[switch]):
        if one_by_one[switch] < IDLE and loss(left - {switch}, *of) <= target:
            left -= {switch}
    return left


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("slack", [0.0, 0.002, 10.0])
def test_a_clean_circuit_is_that_of_a_loop_and_reaches_its_target(how: dict[str, Any], seed: int, slack: float) -> None:
    nodes, run = made(how)
    of = (nodes, run, seed, constants(nodes))
    switches = some(nodes, 10, seed)
    on = set(switches.nonzero().flatten().tolist())
    target = loss(on, *of) * (1 + slack)
    before = switches.clone()
    left = set(clean(switches, *of, target).nonzero().flatten().tolist())
    assert torch.equal(switches, before)
    assert left == literal_clean(on, target, *of)
    assert loss(left, *of) <= target
    assert left <= on


def test_a_switch_that_is_not_missed_is_taken_out() -> None:
    """A neuron that nobody reads is idle whatever else there is."""
    model = vit()
    nodes = Nodes(model)
    neuron = nodes.site(1, "mlp_neuron").start + 5
    model.blocks[1].mlp.fc2.weight[:, 5] = 0
    run = evaluation(model, nodes)
    switches = some(nodes, 20)
    switches[neuron] = True
    of = (nodes, run, 0, constants(nodes))
    target = loss(set(switches.nonzero().flatten().tolist()), *of)
    assert not clean(switches, *of, target)[neuron]


@pytest.mark.parametrize("n", [0, TRIED + 1])
def test_circuits_that_are_empty_or_large_stay_as_they_are(n: int) -> None:
    nodes, run = made({})
    switches = some(nodes, n)
    assert torch.equal(clean(switches, nodes, run, 0, constants(nodes), 1e9), switches)
