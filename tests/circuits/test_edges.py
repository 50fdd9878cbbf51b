"""Edges are counted as a loop over all weights would, together as alone, and exactly however many there are."""

import math
from typing import Any

import pytest
import timm
import torch
from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn

from impact_lightning.circuits.edges import EdgeCounts, Wires, Wiring, block_matrices, count_edges, wiring
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.types import UserError

ARGS: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 6, "depth": 2, "num_heads": 2, "num_classes": 3}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"init_values": 1.0},
    "registers, qk norm": {"reg_tokens": 2, "qk_norm": True},
    "average pooling": {"global_pool": "avg", "class_token": False},
    "no qkv bias": {"qkv_bias": False},
    "packed gate": {"mlp_layer": GluMlp, "init_values": 1.0},
    "gate beside value": {"mlp_layer": SwiGLU},
}


def vit(kind: str = "plain", *, density: float = 0.5, seed: int = 0, **more: Any) -> Any:
    """Return a model in float64 with zeros among its weights, and a zero and negative numbers in LayerScale."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        args = ARGS | {"mlp_ratio": 2.0} | KINDS[kind] | more
        model = timm.create_model("vit_tiny_patch16_224", **args).double().eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter))
            if "gamma" in name:
                parameter[1:3] = torch.tensor([0.0, -0.5])
            elif name.startswith("blocks.") and parameter.ndim == 2:
                parameter.mul_(torch.rand_like(parameter) < density)
    return model


def random_masks(nodes: Nodes, n: int = 4, *, share: float = 0.5, seed: int = 1) -> Tensor:
    return torch.rand(n, nodes.n, generator=torch.Generator().manual_seed(seed)) < share


def only(nodes: Nodes, *names: str) -> Tensor:
    """Return the mask `(n,)` of named nodes, such as `blocks.0.q.3`."""
    mask = torch.zeros(nodes.n, dtype=torch.bool)
    for name in names:
        _, block, site, channel = name.split(".")
        mask[nodes.site(int(block), site).start + int(channel)] = True
    return mask


def literal_weights(model: Any) -> list[tuple[str, str, list[list[float]]]]:
    """Return the weights of all blocks as plain lists, with what they lead from and to, LayerScale folded in."""
    found = []
    for b, block in enumerate(model.blocks):
        q, k, v = block.attn.qkv.weight.chunk(3)
        found += [(f"blocks.{b}.attn_in", f"blocks.{b}.{to}", w.tolist()) for to, w in (("q", q), ("k", k), ("v", v))]
        gammas = [getattr(ls, "gamma", torch.ones(1, 1)).view(-1, 1) for ls in (block.ls1, block.ls2)]
        found.append((f"blocks.{b}.v", f"blocks.{b}.attn_out", (gammas[0] * block.attn.proj.weight).tolist()))
        for name, linear in block.mlp.named_children():
            if name.startswith("fc1"):
                parts = linear.weight.chunk(linear.out_features // block.mlp.fc2.in_features)
                found += [(f"blocks.{b}.mlp_in", f"blocks.{b}.mlp_neuron", part.tolist()) for part in parts]
        found.append((f"blocks.{b}.mlp_neuron", f"blocks.{b}.mlp_out", (gammas[1] * block.mlp.fc2.weight).tolist()))
    return found


def slow_count(model: Any, nodes: Nodes, mask: Tensor) -> tuple[int, int]:
    """Return edges and slots of a circuit `(n,)`, one weight after the other."""
    edges = slots = 0
    by_site = {name: part.tolist() for name, part in nodes.by_site(mask).items()}
    for source, target, weights in literal_weights(model):
        for row, to in zip(weights, by_site[target], strict=True):
            for weight, of in zip(row, by_site[source], strict=True):
                slots += to and of
                edges += to and of and weight != 0
    return edges, slots


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_a_loop_over_weights(kind: str) -> None:
    model = vit(kind)
    nodes = Nodes(model)
    masks = torch.cat([random_masks(nodes), torch.ones(1, nodes.n) > 0, torch.zeros(1, nodes.n) > 0])
    found = count_edges(wiring(model, nodes), masks)
    total, possible = slow_count(model, nodes, masks[4])
    assert 0 < total < possible
    for p, mask in enumerate(masks):
        edges, slots = slow_count(model, nodes, mask)
        assert (int(found.edges[p]), int(found.slots[p])) == (edges, slots)
        assert int(found.nodes[p]) == int(mask.sum())
        assert found.nodes_by_site[p].tolist() == [int(part.sum()) for part in nodes.by_site(mask).values()]
        assert found.density[p] == total / possible
        assert found.normalised_edges[p] == edges / (total / possible)
        if slots:
            assert found.local_density[p] == edges / slots
            assert found.density_ratio[p] == edges / slots / (total / possible)
    assert found.edges_by_matrix.sum(1).tolist() == found.edges.tolist()
    assert found.density_ratio[4] == 1
    assert found.edges[5] == found.normalised_edges[5] == 0
    assert found.local_density[5].isnan()
    assert {x.dtype for x in found[:6]} == {torch.int64}
    assert {x.dtype for x in found[6:]} == {torch.float64}


def test_circuits_together_are_circuits_alone() -> None:
    model = vit("layer scale")
    nodes = Nodes(model)
    masks, wires = random_masks(nodes, 6, share=0.2), wiring(model, nodes)
    together = count_edges(wires, masks)
    alone = [count_edges(wires, masks[p : p + 1]) for p in range(6)]
    for name in EdgeCounts._fields:
        one_by_one = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name), one_by_one, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_a_path_through_one_node_is_three_nodes_and_two_edges(site: str) -> None:
    model = vit(density=1.0)
    nodes = Nodes(model)
    wires = wiring(model, nodes)
    through = torch.stack(
        [
            only(nodes, "blocks.0.mlp_in.2", "blocks.0.mlp_neuron.5", "blocks.0.mlp_out.1"),
            only(nodes, "blocks.1.attn_in.0", f"blocks.1.{site}.4", "blocks.1.attn_out.3"),
            only(nodes, "blocks.0.attn_out.1", "blocks.0.mlp_in.1", "blocks.1.attn_in.1"),  # residual identities
        ]
    )
    found = count_edges(wires, through)
    assert found.nodes.tolist() == [3, 3, 3]
    assert found.edges.tolist() == found.slots.tolist() == [2, 2 if site == "v" else 1, 0]
    assert found.paths.tolist() == [0, 0, 0]


def test_paths_pair_the_same_channel_of_q_and_k() -> None:
    nodes = Nodes(model := vit())
    kept = only(nodes, "blocks.0.q.1", "blocks.0.k.1", "blocks.0.q.2", "blocks.0.k.3", "blocks.1.q.1", "blocks.1.k.1")
    assert count_edges(wiring(model, nodes), kept[None]).paths.tolist() == [2]


def test_all_of_a_vit_b() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    blocks: Any = model.blocks
    block = nn.ModuleList(blocks[:1]).to_empty(device="cpu")
    for parameter in block.parameters():
        parameter.data.fill_(1)
    model.blocks = nn.Sequential(*block)
    nodes = Nodes(model)
    found = count_edges(wiring(model, nodes), torch.ones(1, nodes.n, dtype=torch.bool))
    assert found.edges.tolist() == found.slots.tolist() == [12 * 768**2]
    assert found.paths.tolist() == [768]


def test_counts_above_two_to_the_24th_are_exact() -> None:
    out, width = 4099, 4101
    assert out * width > 2**24
    assert float(torch.tensor(float(out * width))) != out * width  # float32 has no such number
    present = torch.ones(out, width, dtype=torch.bool)
    wires = Wires("one", 0, "fc1", slice(0, width), slice(width, width + out), present)
    masks = torch.ones(2, width + out, dtype=torch.bool)
    masks[1, 0] = False
    assert wires.between(masks).tolist() == [out * width, out * (width - 1)]
    with torch.autocast("cpu", torch.bfloat16):
        assert wires.between(masks).tolist() == [out * width, out * (width - 1)]


def test_pruned_weights_are_not_counted() -> None:
    model = vit(density=1.0)
    nodes = Nodes(model)
    everything = torch.ones(1, nodes.n, dtype=torch.bool)
    before = int(count_edges(wiring(model, nodes), everything).edges)
    model.blocks[0].mlp.fc1.weight[:, 0] = 0
    model.blocks[1].attn.proj.weight[2, 3] = -0.0
    found = count_edges(wiring(model, nodes), everything)
    assert int(found.edges) == before - 12 - 1
    assert float(found.density) == (before - 13) / before
    assert wiring(model, nodes).density == 1 - 13 / before


@pytest.mark.parametrize("kind", ["plain", "packed gate"])
def test_saved_masks_decide_what_is_counted(kind: str) -> None:
    pruned, dense = vit(kind), vit(kind, density=1.0)
    masks = {name: w != 0 for name, w in pruned.named_parameters() if "blocks" in name and w.ndim == 2}
    nodes = Nodes(dense)
    circuits = random_masks(nodes)
    expected = count_edges(wiring(pruned, nodes), circuits)
    found = count_edges(wiring(dense, nodes, masks), circuits)
    assert torch.equal(found.edges, expected.edges)
    assert torch.equal(found.density, expected.density)
    some = {name: mask for name, mask in masks.items() if "proj" in name}
    in_part = count_edges(wiring(dense, nodes, some), circuits).edges_by_matrix
    is_proj = torch.tensor(["proj" in part.name for part in wiring(dense, nodes).wires])
    assert torch.equal(in_part[:, is_proj], expected.edges_by_matrix[:, is_proj])
    assert torch.equal(in_part[:, ~is_proj], count_edges(wiring(dense, nodes), circuits).edges_by_matrix[:, ~is_proj])


def test_a_model_without_weights_has_no_density() -> None:
    model = vit(density=0.0)
    nodes = Nodes(model)
    found = count_edges(wiring(model, nodes), torch.ones(1, nodes.n, dtype=torch.bool))
    assert found.edges.tolist() == [0]
    assert found.local_density.tolist() == [0.0]
    assert all(math.isnan(x) for x in (found.density, found.normalised_edges, found.density_ratio))


def test_matrices_of_a_gated_mlp_are_named() -> None:
    def names(kind: str, **more: Any) -> list[str]:
        model = vit(kind, **more)
        return [part.name for part in block_matrices(model, Nodes(model)) if part.role == "fc1" and part.block == 0]

    assert names("plain") == ["blocks.0.mlp.fc1"]
    assert names("packed gate") == ["blocks.0.mlp.fc1.value", "blocks.0.mlp.fc1.gate"]
    assert names("gate beside value") == ["blocks.0.mlp.fc1_g", "blocks.0.mlp.fc1_x"]


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("more", "name"), [({"scale_attn_norm": True}, "attn.norm"), ({"scale_mlp_norm": True}, "mlp.norm")]
)
def test_norms_between_sites_are_refused_by_name(more: dict[str, Any], name: str) -> None:
    model = vit("plain", **more)
    with pytest.raises(UserError, match=rf"blocks\.0\.{name} is a LayerNorm"):
        wiring(model, Nodes(model))


def test_what_is_no_linear_layer_is_refused_by_name() -> None:
    model = vit()
    nodes = Nodes(model)
    model.blocks[1].mlp.fc1 = nn.Sequential(nn.Linear(6, 12))
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1 is a Sequential"):
        wiring(model, nodes)
    model = vit()
    model.blocks[1].ls2 = nn.Softplus()
    with pytest.raises(UserError, match=r"blocks\.1\.ls2 is a Softplus"):
        wiring(model, nodes)


def test_nodes_of_another_model_are_refused() -> None:
    with pytest.raises(UserError, match="blocks"):
        wiring(vit(), Nodes(vit(depth=3)))
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.fc1 is"):
        wiring(vit(), Nodes(vit(mlp_ratio=3.0)))


def test_masks_that_do_not_fit_are_refused() -> None:
    model = vit()
    nodes = Nodes(model)
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv\.weight is \(3, 3\)"):
        wiring(model, nodes, {"blocks.0.attn.qkv.weight": torch.ones(3, 3)})
    with pytest.raises(UserError, match="layer4"):
        wiring(model, nodes, {"layer4.weight": torch.ones(3, 3)})
    wires: Wiring = wiring(model, nodes)
    for masks in (torch.ones(1, nodes.n), torch.ones(nodes.n) > 0, torch.ones(1, nodes.n + 1) > 0):
        with pytest.raises(UserError, match=f"shape \\(P, {nodes.n}\\)"):
            count_edges(wires, masks)
