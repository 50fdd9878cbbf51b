"""Gates are open, closed, or in between, and their gradients are those of the formula."""

from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from impact_lightning.backbones import capture, patch
from impact_lightning.circuits.gate import Gate, Heaviside
from impact_lightning.circuits.gated import gating
from impact_lightning.circuits.nodes import SITES, Nodes, NodeSite
from tests.circuits.test_fold import KINDS, constants, pictures, vit


def of(mu: Tensor) -> Any:
    """Return constants `(n,)` by the sites of a hook."""
    return lambda sites: torch.cat([mu[site.of] for site in sites])[None, None]


def literal(model: Any, nodes: Nodes, images: Tensor, mask: Tensor, mu: Tensor) -> Tensor:
    """Return logits of a circuit `(n,)` by patches of named sites."""

    def edit(site: NodeSite) -> Any:
        m, c = mask[site.of], mu[site.of]
        return lambda x: m * x + (1 - m) * c

    with patch(model, {str(site): edit(site) for site in nodes.sites}):
        logits: Tensor = model(images)
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_open_gates_change_no_bit(kind: str) -> None:
    model, images = vit(kind), pictures()
    nodes = Nodes(model)
    clean = model(images)
    with gating(model, nodes) as gated:
        found = gated(images, torch.ones(3, nodes.n, dtype=torch.float64), of(torch.zeros(nodes.n)))
        assert torch.equal(model(images), clean)  # without masks nothing is gated
    assert torch.equal(found, clean)
    assert torch.equal(model(images), clean)


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_has_a_circuit_of_its_own(kind: str) -> None:
    model, images = vit(kind), pictures()
    nodes = Nodes(model)
    masks = (torch.rand(3, nodes.n, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    masks[2] = torch.rand(nodes.n, dtype=torch.float64)
    mu = constants(nodes)
    with gating(model, nodes) as gated:
        found = gated(images, masks, of(mu))
    for i in range(3):
        torch.testing.assert_close(found[i], literal(model, nodes, images[i : i + 1], masks[i], mu)[0])


def test_closed_gates_leave_the_class_token_nothing_to_tell() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    with gating(model, nodes) as gated:
        found = gated(images, torch.zeros(3, nodes.n, dtype=torch.float64), of(constants(nodes)))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], model(images)[0])


def test_nodes_are_those_of_a_vit_b() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    nodes = Nodes(model)
    assert nodes.n == nodes.n_switches == 101_376
    assert Nodes(model, granularity="head").n_switches == 74_160
    assert Nodes(model, tie_qk=True).n_switches == 101_376 - 12 * 768


@pytest.mark.parametrize(
    ("granularity", "tie_qk"), [("channel", False), ("channel", True), ("head", False), ("head", True)]
)
def test_a_switch_turns_its_nodes(granularity: Any, *, tie_qk: bool) -> None:
    nodes = Nodes(vit(), granularity=granularity, tie_qk=tie_qk)
    by_site = nodes.by_site(nodes.expand(torch.arange(nodes.n_switches)[None].double()))
    for block in range(2):
        q, k, v, neuron = (by_site[f"blocks.{block}.{name}"][0] for name in ("q", "k", "v", "mlp_neuron"))
        assert torch.equal(q, k) == tie_qk
        assert len(q.unique()) == (2 if granularity == "head" else 16)
        assert torch.equal(q[:8] == q[0], torch.ones(8, dtype=torch.bool)) == (granularity == "head")
        assert not set(v.tolist()) & set(q.tolist())
        assert len(neuron.unique()) == 64
    assert torch.equal(nodes.switch_of.unique(), torch.arange(nodes.n_switches))


def test_sites_lie_one_after_another() -> None:
    nodes = Nodes(vit())
    assert [str(site) for site in nodes.sites] == [f"blocks.{i}.{name}" for i in range(2) for name in SITES]
    assert [site.start for site in nodes.sites][1:] == [site.of.stop for site in nodes.sites][:-1]
    assert nodes.sites[-1].of.stop == nodes.n


# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("shape", [(1, 1, 4), (1, 5, 4), (3, 1, 4), (3, 5, 4)])
def test_gradients_of_the_gate_are_finite_differences(shape: Sequence[int]) -> None:
    torch.manual_seed(0)
    x, m, mu = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 5, 4), (3, 4), shape))
    assert torch.autograd.gradcheck(Gate.apply, (x, m, mu))


def test_the_straight_through_gradient_is_the_hand_calculation() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    mu, temperature = constants(nodes), 0.7
    theta = torch.randn(1, nodes.n, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    weight = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    with gating(model, nodes) as gated:
        masks = Heaviside.apply(theta, temperature).expand(3, -1)
        (found,) = torch.autograd.grad((weight * gated(images, masks, of(mu))).sum(), theta)

    hard = (theta[0] >= 0).double().detach()

    def edit(site: NodeSite) -> Any:
        m, c = hard[site.of], mu[site.of]

        def gate(x: Tensor) -> Tensor:
            before[str(site)] = x
            flowing = m * x + (1 - m) * c
            after[str(site)] = flowing if flowing.requires_grad else flowing.requires_grad_()
            return after[str(site)]

        return gate

    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    with torch.enable_grad(), patch(model, {str(site): edit(site) for site in nodes.sites}):
        loss = (weight * model(images)).sum()
        gradients = torch.autograd.grad(loss, [after[str(site)] for site in nodes.sites])
    s = torch.sigmoid(theta[0] / temperature)
    for site, g in zip(nodes.sites, gradients, strict=True):
        by_mask = (g * (before[str(site)] - mu[site.of])).sum((0, 1))
        expected = by_mask * (s * (1 - s) / temperature)[site.of]
        torch.testing.assert_close(found[0, site.of], expected.detach(), rtol=1e-9, atol=1e-12)


def test_gates_are_taken_out_after_an_error() -> None:
    model = vit()
    before = {name: len(module._forward_hooks) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match="stop"), gating(model, Nodes(model)):
        raise ValueError("stop")
    assert {name: len(module._forward_hooks) for name, module in model.named_modules()} == before
    with capture(model, "blocks.0.q"):
        model(pictures())
