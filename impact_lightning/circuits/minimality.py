"""Minimality: what the switches of a circuit are there for, one by one."""

from typing import NamedTuple

import torch
from torch import Tensor

from impact_lightning.circuits.evaluation import Evaluation, Filling
from impact_lightning.circuits.nodes import Nodes

IDLE = 0.001  # relative rise of the loss, below which a switch is not missed
TRIED = 64  # switches of a circuit that are left out one by one


class Minimality(NamedTuple):
    """Which switches of a circuit are idle."""

    idle: float  # share of the switches tried that are not missed
    tried: int


def _rises(switches: Tensor, which: Tensor, nodes: Nodes, run: Evaluation, task: int, filling: Filling) -> Tensor:
    """Return by which part the loss rises without each of some switches, `(m,)`."""
    circuits = switches.repeat(1 + len(which), 1)
    circuits[torch.arange(1, 1 + len(which)), which] = False
    losses = run(nodes.expand(circuits), [task] * len(circuits), filling).loss
    return losses[1:] / losses[0].clamp_min(1e-12) - 1


def minimality(
    switches: Tensor, nodes: Nodes, run: Evaluation, task: int, filling: Filling, *, seed: int
) -> Minimality:
    """Leave out switches of a circuit `(n_switches,)` one by one; of a large one, some that are drawn.

    Args:
        switches: Which are on.
        nodes: The nodes.
        run: Evaluates circuits.
        task: The circuit's task.
        filling: What nodes that are off hold.
        seed: Seed of the draw.
    """
    on = switches.nonzero().flatten()
    drawn = on[torch.randperm(len(on), generator=torch.Generator().manual_seed(seed))[:TRIED]]
    if not len(drawn):
        return Minimality(float("nan"), 0)
    rises = _rises(switches, drawn, nodes, run, task, filling)
    return Minimality(float((rises < IDLE).double().mean()), len(drawn))


def clean(switches: Tensor, nodes: Nodes, run: Evaluation, task: int, filling: Filling, target: float) -> Tensor:
    """Take switches out of a small circuit that are not missed, least missed first, as long as it reaches its target.

    Args:
        switches: Which are on, `(n_switches,)`.
        nodes: The nodes.
        run: Evaluates circuits, on images that nothing is reported on.
        task: The circuit's task.
        filling: What nodes that are off hold.
        target: The loss that it has to reach.
    """
    on = switches.nonzero().flatten()
    if not 0 < len(on) <= TRIED:
        return switches
    rises = _rises(switches, on, nodes, run, task, filling)
    left = switches.clone()
    for switch in on[rises.argsort(stable=True)][: int((rises < IDLE).sum())].tolist():
        left[switch] = False
        if float(run(nodes.expand(left[None]), [task], filling).loss) > target:
            left[switch] = True
    return left
