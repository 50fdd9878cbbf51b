"""A node that is off has the value of another image: which image that is, what then flows, and its gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.backbones import capture, patch
from impact_lightning.circuits.gated import gating
from impact_lightning.circuits.nodes import Nodes, NodeSite
from impact_lightning.circuits.resampling import Donor, Resampled, donors, donors_of_step
from tests.circuits.test_fold import KINDS, pictures, vit

SIDES = torch.tensor([1, 0, 1, 2, 0, 1, 2, 1])


def literal_resampled(model: Any, nodes: Nodes, mask: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """Return logits of a circuit `(n,)` in two forwards: of the others, and with their values where nodes are off."""
    with capture(model, [str(site) for site in nodes.sites]) as captured:
        model(others)
    held = {name: value.clone() for name, value in captured.items()}

    def edit(site: NodeSite) -> Any:
        m, given = mask[site.of].to(others), held[str(site)]
        return lambda x: m * x + (1 - m) * given

    with patch(model, {str(site): edit(site) for site in nodes.sites}):
        logits: Tensor = model(images)
    return logits


# ----------------------------------------------------------------------------------------------------------- donors


@pytest.mark.parametrize("seed", range(20))
def test_any_image_gives_once_and_never_to_itself(seed: int) -> None:
    found = donors(SIDES, Resampled("any", seed))
    assert found.sort().values.tolist() == list(range(8))
    assert not (found == torch.arange(8)).any()


@pytest.mark.parametrize("seed", range(20))
def test_images_of_the_same_side_never_give_to_themselves(seed: int) -> None:
    found = donors(SIDES, Resampled("same", seed))
    assert torch.equal(SIDES[found], SIDES)
    assert not (found == torch.arange(8)).any()


@pytest.mark.parametrize("seed", range(20))
def test_images_of_another_side_give(seed: int) -> None:
    found = donors(SIDES, Resampled("other", seed))
    assert (SIDES[found] != SIDES).all()


@pytest.mark.parametrize("donor", ["any", "same", "other"])
def test_donors_follow_their_seed(donor: Donor) -> None:
    one, again, other = (donors(SIDES.repeat(3), Resampled(donor, seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("donor", ["any", "same", "other"])
def test_every_other_image_is_as_likely(donor: Donor) -> None:
    targets = torch.tensor([0, 0, 0, 1, 1])
    table = torch.stack([donors(targets, Resampled(donor, seed)) for seed in range(2000)])
    for i in range(5):
        others = [j for j in range(5) if j != i]
        free = {
            "any": others,
            "same": [j for j in others if targets[j] == targets[i]],
            "other": [j for j in others if targets[j] != targets[i]],
        }[donor]
        counts = table[:, i].bincount(minlength=5)
        p = 1 / len(free)
        assert int(counts[free].sum()) == 2000
        assert (counts[free] - 2000 * p).abs().max() <= 5 * (2000 * p * (1 - p)) ** 0.5


def test_the_only_image_of_a_side_is_its_own_donor() -> None:
    found = donors(torch.tensor([0, 1, 0, 1, 2]), Resampled("same", 0))
    assert found.tolist() == [2, 3, 0, 1, 4]


@pytest.mark.parametrize("b", [2, 3, 8])
def test_images_of_a_step_give_to_each_other_and_to_another_one_in_the_next(b: int) -> None:
    places = torch.arange(3)[:, None] * 100 + torch.arange(b)
    found = [donors_of_step(places, step) for step in range(3 * b)]
    for one in found:
        assert torch.equal(one.sort(1).values, places)  # of its own circuit
        assert not (one == places).any()
    for i in range(b):
        assert {int(one[0, i]) for one in found} == set(range(b)) - {i}


# ------------------------------------------------------------------------------------------------------ what flows


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_that_are_off_have_the_values_of_another_image(kind: str) -> None:
    model, images = vit(kind), pictures(6)
    nodes = Nodes(model)
    own, others = images[:3], images[3:]
    masks = (torch.rand(3, nodes.n, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    with gating(model, nodes) as gated:
        found = gated.resampled(own, others, masks)
        for i in range(3):
            alone = literal_resampled(model, nodes, masks[i], own[i : i + 1], others[i : i + 1])
            torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-10, atol=1e-10)


def test_all_or_no_nodes_of_another_image() -> None:
    model, images = vit(), pictures(6)
    nodes = Nodes(model)
    with gating(model, nodes) as gated:
        on, off = (
            gated.resampled(images[:3], images[3:], torch.full((3, nodes.n), m, dtype=torch.float64)) for m in (1, 0)
        )
    torch.testing.assert_close(on, model(images[:3]))
    torch.testing.assert_close(off, model(images[3:]))  # every write is that of the other image


def test_gradients_of_masks_are_finite_differences_and_donors_have_none() -> None:
    model, images = vit(), pictures(4)
    nodes = Nodes(model)
    generator = torch.Generator().manual_seed(5)
    masks = torch.rand(2, nodes.n, dtype=torch.float64, generator=generator)
    weight = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    donated = images[2:].clone().requires_grad_()

    def loss(masks: Tensor) -> Tensor:
        with gating(model, nodes) as gated:
            return (weight * gated.resampled(images[:2], donated, masks)).sum()

    masks.requires_grad_()
    (found,) = torch.autograd.grad(loss(masks), masks)
    for node in range(0, nodes.n, 37):
        step = torch.zeros_like(masks)
        step[node % 2, node] = 1e-6
        with torch.no_grad():
            slope = float(loss(masks + step) - loss(masks - step)) / 2e-6
        assert float(found[node % 2, node]) == pytest.approx(slope, rel=1e-5, abs=1e-7)
    (of_donors,) = torch.autograd.grad(loss(masks), donated, allow_unused=True, materialize_grads=True)
    assert not of_donors.any()
