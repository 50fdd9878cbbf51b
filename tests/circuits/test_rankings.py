"""Attributions are slopes of the gated loss, and magnitudes norms of named weights."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.gated import gating
from impact_lightning.circuits.means import Baseline
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.rankings import IMAGES, attributions, magnitudes
from impact_lightning.circuits.tasks import Images, Task, judge
from tests.circuits import test_edges, test_fold
from tests.circuits.test_evaluation import TASKS, Held

HOW: list[dict[str, Any]] = [{}, {"granularity": "head"}, {"tie_qk": True}]


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("tokens", [1, 5])
def test_attributions_are_slopes_of_the_loss(how: dict[str, Any], tokens: int) -> None:
    model, held = test_fold.vit(), Held()
    nodes = Nodes(model, **how)
    mu = torch.randn(tokens, nodes.n, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    images: Any = held
    found = attributions(model, nodes, TASKS, images, mu)
    assert found.shape == (4, nodes.n_switches)
    assert (found >= 0).all()

    def loss(task: int, switches: Tensor) -> float:
        rows, targets = held.images[task]
        with gating(model, nodes) as gated:
            z = gated(held[rows], nodes.expand(switches[None]).expand(len(rows), -1), Baseline(mu, nodes))
        whole = model(held[rows])
        if TASKS[task].readout == "kl":  # which is smallest at the whole model: that of its predictions has a slope
            return -float(z.log_softmax(1)[range(len(rows)), whole.argmax(1)].mean())
        return float(judge(TASKS[task], z, targets, whole).loss.mean())

    assert (found[3] > 1e-3).any()
    for task in range(4):
        for switch in range(0, nodes.n_switches, 31):
            step = torch.zeros(nodes.n_switches, dtype=torch.float64)
            step[switch] = 1e-5
            slope = (loss(task, 1 + step) - loss(task, 1 - step)) / 2e-5
            assert float(found[task, switch]) == pytest.approx(abs(slope), rel=1e-4, abs=1e-7)


def test_of_many_images_some_have_part_in_attributions() -> None:
    model = test_fold.vit()
    nodes = Nodes(model)
    held: Any = Held(IMAGES + 40)
    held.images = [Images(torch.arange(IMAGES + 40), torch.arange(IMAGES + 40) % 2)]
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    attributions(model, nodes, [Task("rest", (1,))], held, torch.zeros(1, nodes.n, dtype=torch.float64))
    assert set(seen) == {IMAGES}


def test_attributions_can_be_taken_in_a_test_of_lightning() -> None:
    model = test_fold.vit()
    nodes = Nodes(model)
    held: Any = Held()
    expected = attributions(model, nodes, TASKS, held, torch.zeros(1, nodes.n, dtype=torch.float64))
    with torch.inference_mode():
        found = attributions(model, nodes, TASKS, held, torch.zeros(1, nodes.n, dtype=torch.float64))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize("kind", test_edges.KINDS)
def test_magnitudes_are_norms_of_all_weights_of_a_switch(kind: str, how: dict[str, Any]) -> None:
    model = test_edges.vit(kind)
    nodes = Nodes(model, **how)
    squares = [0.0] * nodes.n_switches
    place = {
        f"{site}.{channel}": int(nodes.switch_of[site.start + channel])
        for site in nodes.sites
        for channel in range(site.width)
    }
    for source, target, rows in test_edges.literal_weights(model):
        for i, row in enumerate(rows):
            for j, weight in enumerate(row):
                squares[place[f"{target}.{i}"]] += weight**2
                squares[place[f"{source}.{j}"]] += weight**2
    found = magnitudes(model, nodes)
    assert found.tolist() == pytest.approx([math.sqrt(square) for square in squares], rel=1e-12)
    assert (found > 0).sum() > 0.8 * nodes.n_switches
