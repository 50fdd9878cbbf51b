"""A compacted network has the outputs of its circuit and fewer parameters, and cuts out no more than it may."""

import copy
import io
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from impact_lightning.backbones import check_supported
from impact_lightning.circuits.compact import Attention, Constant, Mlp, Removed, compact
from impact_lightning.circuits.fold import fold
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.types import UserError
from tests.circuits.test_fold import ARGS, DENSITIES, KINDS, constants, drawn, hooked, pictures, same, vit


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def bodies(network: Any, kind: type) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, kind)]


def only(nodes: Nodes, off: dict[str, slice | list[int]]) -> Tensor:
    """Return a mask of all nodes but some, by name of their site."""
    mask = torch.ones(nodes.n, dtype=torch.float64)
    sites = nodes.by_site(mask[None])  # views
    for name, channels in off.items():
        sites[name][0, channels] = 0
    return mask


@pytest.mark.parametrize("kind", KINDS)
def test_compacted_is_hooked(kind: str) -> None:
    model, images = vit(kind), pictures()
    nodes = Nodes(model)
    before, mu = copy.deepcopy(model.state_dict()), constants(nodes)
    for density in DENSITIES:
        mask = drawn(nodes, density)
        network, removed = compact(model, nodes, mask, mu)
        same(network(images), hooked(model, nodes, images, mask, mu))
        assert removed.parameters == size(model) - size(network)
        if density < 1:
            assert removed.parameters > 0
            assert size(network) < size(fold(model, nodes, mask, mu))
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() == before.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_sites_one_at_a_time(kind: str) -> None:
    model, images = vit(kind), pictures()
    nodes = Nodes(model)
    mu, mask = constants(nodes), drawn(nodes, 0.4)
    for site in nodes.sites[:8]:  # of the first block
        closed, half = torch.ones_like(mask), torch.ones_like(mask)
        closed[site.of], half[site.of] = 0, mask[site.of]
        for one in (closed, half):
            same(compact(model, nodes, one, mu)[0](images), hooked(model, nodes, images, one, mu))


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_model_loses_nothing(kind: str) -> None:
    model = vit(kind)
    nodes = Nodes(model)
    network, removed = compact(model, nodes, torch.ones(nodes.n), constants(nodes))
    gammas = sum(value.numel() for name, value in model.named_parameters() if "gamma" in name)
    assert removed == Removed(parameters=gammas)
    assert len(bodies(network, Attention)) == len(bodies(network, Mlp)) == 2


def test_the_empty_circuit_is_four_constants() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    network, removed = compact(model, nodes, torch.zeros(nodes.n), constants(nodes))
    assert len(bodies(network, Constant)) == 4
    assert removed == Removed(2, 2, 4, 32, 32, 128, 64, 64, removed.parameters)
    same(network(images[:1]), network(images[1:2]))
    assert "2 attentions, 2 MLPs, 4 heads, 32 q-k channels, 32 v channels, 128 neurons" in str(removed)


def test_weights_of_zero_are_cut_as_nodes_are() -> None:
    model, images = vit(), pictures()
    model.blocks[0].mlp.fc1.weight.data[:10] = 0  # constant neurons
    model.blocks[0].mlp.fc2.weight.data[:, 10:15] = 0  # neurons that nothing reads
    model.blocks[1].attn.proj.weight.data[:, 8:] = 0  # a head that nothing reads
    nodes = Nodes(model)
    network, removed = compact(model, nodes, torch.ones(nodes.n), constants(nodes))
    same(network(images), model(images))
    assert removed == Removed(heads=1, qk=8, v=8, neurons=15, parameters=removed.parameters)


# ---------------------------------------------------------------------------------------------------- queries and keys


def test_keys_that_are_off_go_with_their_queries() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    mask, mu = only(nodes, {"blocks.0.k": [0, 3, 9]}), constants(nodes)  # q is on
    network, removed = compact(model, nodes, mask, mu)
    assert (removed.qk, removed.v) == (3, 0)
    same(network(images), hooked(model, nodes, images, mask, mu))
    same(
        network(images), compact(model, nodes, only(nodes, {"blocks.0.k": [0, 3, 9], "blocks.0.q": [0]}), mu)[0](images)
    )


def test_queries_that_are_off_stay_where_their_keys_are_on() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    mask, mu = only(nodes, {"blocks.0.q": [0, 3, 9]}), constants(nodes)
    network, removed = compact(model, nodes, mask, mu)
    expected = hooked(model, nodes, images, mask, mu)
    assert removed.qk == 0
    same(network(images), expected)
    deleted = only(nodes, {"blocks.0.q": [0, 3, 9], "blocks.0.k": [0, 3, 9]})
    without, removed = compact(model, nodes, deleted, mu)
    assert removed.qk == 3
    assert (without(images) - expected).abs().max() > 1e-3  # a constant query still tells keys apart


def test_queries_of_zero_go() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    mask, mu = only(nodes, {"blocks.0.q": [0, 3]}), constants(nodes)
    mu[[nodes.site(0, "q").start, nodes.site(0, "q").start + 3]] = 0
    network, removed = compact(model, nodes, mask, mu)
    assert removed.qk == 2
    same(network(images), hooked(model, nodes, images, mask, mu))


def test_heads_of_different_widths_share_one_layer() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    mask = only(nodes, {"blocks.0.k": [0, 1, 2, 8, 9, 10, 11, 12], "blocks.0.v": [0, 15]})
    network, removed = compact(model, nodes, mask, constants(nodes))
    attention = bodies(network, Attention)[0]
    assert (attention.heads, attention.widths, attention.scale) == (2, (5, 7), 8**-0.5)
    assert attention.qkv.out_features == 2 * (5 + 5 + 7)
    assert (removed.qk, removed.v) == (8, 2)
    same(network(images), hooked(model, nodes, images, mask, constants(nodes)))


def test_a_head_without_keys_hears_all_tokens_alike() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    mask = only(nodes, {"blocks.0.k": slice(None)})
    network, removed = compact(model, nodes, mask, constants(nodes))
    assert (removed.qk, removed.heads) == (16, 0)
    same(network(images), hooked(model, nodes, images, mask, constants(nodes)))


def test_a_head_without_values_is_a_bias() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    mask = only(nodes, {"blocks.0.v": slice(0, 8), "blocks.1.v": slice(None)})
    network, removed = compact(model, nodes, mask, constants(nodes))
    assert (removed.heads, removed.qk, removed.v, removed.attentions) == (3, 24, 24, 1)
    assert [attention.heads for attention in bodies(network, Attention)] == [1]
    same(network(images), hooked(model, nodes, images, mask, constants(nodes)))


def test_norms_keep_what_they_mix() -> None:
    off: dict[str, slice | list[int]] = {"blocks.0.k": [0], "blocks.0.v": [0], "blocks.0.mlp_neuron": [0]}
    for kind, kept in {"registers, qk norm": "qk", "attention norm": "v", "MLP norm": "neurons"}.items():
        model = vit(kind)
        nodes = Nodes(model)
        _, removed = compact(model, nodes, only(nodes, off), constants(nodes))
        assert {name: getattr(removed, name) for name in ("qk", "v", "neurons")} == {
            name: int(name != kept) for name in ("qk", "v", "neurons")
        }


# --------------------------------------------------------------------------------------------------- the result


def test_a_state_dict_fits_the_network_of_the_same_circuit() -> None:
    model, images = vit("layer scale"), pictures()
    nodes = Nodes(model)
    mask, mu = drawn(nodes, 0.3), constants(nodes)
    network, _ = compact(model, nodes, mask, mu)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other, _ = compact(model, nodes, mask, mu)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(images), network(images))


def test_it_is_a_plain_module_that_no_longer_has_sites() -> None:
    model = vit()
    nodes = Nodes(model)
    network, _ = compact(model, nodes, drawn(nodes, 0.3), constants(nodes))
    assert not any(module.training or module._forward_hooks for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(UserError, match=r"blocks\.0 is a torch\.nn\.modules\.container\.Sequential"):
        check_supported(network)


def test_it_computes_in_single_precision_and_below() -> None:
    model, images = vit("layer scale"), pictures()
    nodes = Nodes(model)
    mask, mu = drawn(nodes, 0.4), constants(nodes)
    expected = hooked(model, nodes, images, mask, mu)
    single = compact(model.float(), nodes, mask, mu)[0](images.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)
    half = compact(model.bfloat16(), nodes, mask, mu)[0](images.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.double() - expected).abs().max() < 0.1 * expected.abs().max()


def test_neurons_that_are_not_each_on_their_own_are_refused() -> None:
    class Sloped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.ones(64, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.slope

    model = vit()
    nodes = Nodes(model)
    for act in (nn.Softmax(dim=-1), Sloped()):
        model.blocks[1].mlp.act = act.eval()
        mask, mu = drawn(nodes, 0.5), constants(nodes)
        same(fold(model, nodes, mask, mu)(pictures()), hooked(model, nodes, pictures(), mask, mu))
        with pytest.raises(
            UserError, match=rf"blocks\.1\.mlp\.act is a {type(act).__name__}, which does not act on each"
        ):
            compact(model, nodes, mask, mu)


def test_what_cannot_be_folded_cannot_be_compacted() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **ARGS)
    nodes = Nodes(model)
    with pytest.raises(UserError, match="the model is in training mode"):
        compact(model, nodes, torch.ones(nodes.n), torch.zeros(nodes.n))
