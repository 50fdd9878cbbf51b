"""Live nodes follow the rules one by one, as a search of the graph does, and the logits need no others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.backbones import patch
from impact_lightning.circuits.edges import wiring
from impact_lightning.circuits.live import live_nodes
from impact_lightning.circuits.nodes import Nodes, NodeSite
from tests.circuits.test_edges import KINDS, literal_weights, only, random_masks, vit

Node = tuple[int, str, int]


def slow_live(model: Any, nodes: Nodes, mask: Tensor, mu: Tensor, head_reads: list[bool]) -> Tensor:
    """Return live nodes of a circuit: nodes that break a rule are removed one by one until none does."""
    places = {(site.block, site.name, c): site.start + c for site in nodes.sites for c in range(site.width)}
    kept = {node for node, place in places.items() if mask[place]}
    into: dict[Node, set[Node]] = {node: set() for node in kept}
    out_of: dict[Node, set[Node]] = {node: set() for node in kept}
    for source, target, weights in literal_weights(model):
        block = int(source.split(".")[1])
        for i, row in enumerate(weights):
            for j, weight in enumerate(row):
                a, b = (block, source.split(".")[2], j), (block, target.split(".")[2], i)
                if weight != 0 and a in kept and b in kept:
                    into[b].add(a)
                    out_of[a].add(b)
    order = ["attn_in", "attn_out", "mlp_in", "mlp_out"]
    size = nodes.site(0, "q").width // nodes.heads[0]

    def has_reader(node: Node) -> bool:
        block, site, c = node
        later = {
            other
            for other in kept
            if other[1] in ("attn_in", "mlp_in")
            and other[2] == c
            and (other[0], order.index(other[1])) > (block, order.index(site))
        }
        return bool(later) or head_reads[c]

    def asks(block: int, c: int) -> bool:
        if (block, "q", c) in kept or mu[places[block, "q", c]] != 0:
            return True
        norm = model.blocks[block].attn.q_norm
        return getattr(norm, "bias", None) is not None and bool(norm.bias[c % size] != 0)

    def stays(node: Node, live: set[Node]) -> bool:
        block, site, c = node
        head = [d for d in range(c // size * size, (c // size + 1) * size)]
        partners = [c] if isinstance(model.blocks[block].attn.q_norm, torch.nn.Identity) else head
        looks = any((block, "v", d) in live for d in head)
        fed = bool(into[node] & live)
        match site:
            case "attn_in" | "mlp_in":
                return bool(out_of[node] & live)
            case "v" | "mlp_neuron":
                return fed and bool(out_of[node])
            case "k":
                return fed and looks and any(asks(block, d) for d in partners)
            case "q":
                return fed and looks and any((block, "k", d) in live for d in partners)
        return fed and has_reader(node)

    live = set(kept)
    while gone := next((node for node in sorted(live) if not stays(node, live)), None):
        live.remove(gone)
    found = torch.zeros(nodes.n, dtype=torch.bool)
    found[[places[node] for node in live]] = True
    return found


def half_zero(nodes: Nodes, seed: int = 2) -> Tensor:
    """Return constants of which half are zero."""
    mu = torch.randn(nodes.n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return mu * (torch.arange(nodes.n) % 2)


@pytest.mark.parametrize("density", [0.1, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_live_nodes_are_those_of_a_search(kind: str, density: float) -> None:
    model = vit(kind, density=density)
    nodes = Nodes(model)
    masks = torch.cat([random_masks(nodes, 2), random_masks(nodes, 2, share=0.8)])
    head_reads = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < 0.3
    head_reads[0] = True
    mu, wires = half_zero(nodes), wiring(model, nodes)
    found = live_nodes(wires, masks, mu, head_reads)
    assert found.dtype == torch.bool
    assert 0 < found.sum() < masks.sum()
    for p in range(4):
        assert torch.equal(found[p], slow_live(model, nodes, masks[p], mu, head_reads[p].tolist()))
        assert torch.equal(found[p : p + 1], live_nodes(wires, masks[p : p + 1], mu, head_reads[p]))
    assert torch.equal(live_nodes(wires, masks, mu)[0], found[0])  # the head reads all channels
    assert torch.equal(live_nodes(wires, masks, mu.expand(4, -1)), live_nodes(wires, masks, mu))


def run(model: Any, nodes: Nodes, images: Tensor, mask: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of a circuit, and the value of each kept node at the first token of the first image."""
    seen = mu.clone()

    def edit(site: NodeSite) -> Callable[[Tensor], Tensor]:
        def gate(x: Tensor) -> Tensor:
            flowing = torch.where(mask[site.of], x, mu[site.of])
            seen[site.of] = flowing[0, 0]
            return flowing

        return gate

    with patch(model, {str(site): edit(site) for site in nodes.sites}):
        logits: Tensor = model(images)
    return logits, seen


@pytest.mark.parametrize("kind", KINDS)
def test_logits_do_not_need_nodes_that_are_not_live(kind: str) -> None:
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    n_dead = 0
    for seed in range(4):
        model = vit(kind, density=0.15, seed=seed)
        nodes = Nodes(model)
        (mask,), mu = random_masks(nodes, 1, share=0.8, seed=seed), half_zero(nodes)
        (live,) = live_nodes(wiring(model, nodes), mask[None], mu)
        logits, seen = run(model, nodes, images, mask, mu)
        found, _ = run(model, nodes, images, live, torch.where(mask, seen, mu))
        torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)
        n_dead += int((mask & ~live).sum())
    assert n_dead > 40


# ------------------------------------------------------------------------------------------------- each rule, by hand


def dense(kind: str = "plain") -> tuple[Any, Nodes]:
    model = vit(kind, density=1.0)
    return model, Nodes(model)


def names_of(nodes: Nodes, mask: Tensor) -> set[str]:
    return {
        f"{site.block}.{site.name}.{c}" for site in nodes.sites for c in mask[site.of].nonzero().squeeze(1).tolist()
    }


def alive(model: Any, nodes: Nodes, *kept: str, mu: Tensor | None = None, head: Tensor | None = None) -> set[str]:
    mask = only(nodes, *(f"blocks.{name}" for name in kept))
    mu = torch.zeros(nodes.n) if mu is None else mu
    return names_of(nodes, live_nodes(wiring(model, nodes), mask[None], mu, head)[0])


def test_a_neuron_needs_an_input_and_an_output() -> None:
    model, nodes = dense()
    whole = "0.mlp_in.1", "0.mlp_neuron.4", "0.mlp_out.2"
    assert alive(model, nodes, *whole) == set(whole)
    for missing in range(3):
        assert alive(model, nodes, *(whole[:missing] + whole[missing + 1 :])) == set()
    model.blocks[0].mlp.fc1.weight[4, 1] = 0
    assert alive(model, nodes, *whole) == set()


def test_attention_needs_only_v() -> None:
    model, nodes = dense()
    whole = {"0.attn_in.1", "0.v.4", "0.attn_out.2"}
    assert alive(model, nodes, *whole) == whole
    assert alive(model, nodes, *whole, "0.attn_in.0") == whole | {"0.attn_in.0"}
    model.blocks[0].attn.proj.weight[2, 4] = 0
    assert alive(model, nodes, *whole) == set()


def test_q_and_k_need_each_other_and_a_v_of_their_head() -> None:
    model, nodes = dense()
    v_path = {"0.attn_in.1", "0.v.4", "0.attn_out.2"}  # head 1 has channels 3 to 5
    assert alive(model, nodes, *v_path, "0.q.3", "0.k.3") == v_path | {"0.q.3", "0.k.3"}
    assert alive(model, nodes, *v_path, "0.q.3", "0.k.5") == v_path  # channels differ
    assert alive(model, nodes, *v_path, "0.q.0", "0.k.0") == v_path  # another head
    assert alive(model, nodes, "0.attn_in.1", "0.q.3", "0.k.3", "0.attn_out.2") == set()


def test_a_constant_query_that_is_not_zero_still_needs_its_key() -> None:
    model, nodes = dense()
    kept = {"0.attn_in.1", "0.v.4", "0.attn_out.2", "0.k.3"}
    mu = torch.zeros(nodes.n)
    assert alive(model, nodes, *kept, mu=mu) == kept - {"0.k.3"}
    mu[nodes.site(0, "q").start + 3] = 1
    assert alive(model, nodes, *kept, mu=mu) == kept
    mu = torch.ones(nodes.n)
    assert "0.q.3" not in alive(model, nodes, "0.attn_in.1", "0.v.4", "0.attn_out.2", "0.q.3", mu=mu)  # softmax
    model.blocks[0].attn.qkv.weight[3] = 0  # the row of q 3: a kept query without inputs is a constant
    assert alive(model, nodes, *kept, "0.q.3") == kept


def test_with_qk_norm_any_channel_of_the_head_is_a_partner() -> None:
    model, nodes = dense("registers, qk norm")
    for block in model.blocks:
        block.attn.q_norm.bias.zero_()
    v_path = {"0.attn_in.1", "0.v.4", "0.attn_out.2"}
    assert alive(model, nodes, *v_path, "0.q.3", "0.k.5") == v_path | {"0.q.3", "0.k.5"}
    assert alive(model, nodes, *v_path, "0.q.0", "0.k.5") == v_path
    assert alive(model, nodes, *v_path, "0.q.3") == v_path
    assert alive(model, nodes, *v_path, "0.k.5") == v_path
    model.blocks[0].attn.q_norm.bias[1] = 1  # what the norm adds to a query of zeros
    assert alive(model, nodes, *v_path, "0.k.5") == v_path | {"0.k.5"}


def test_a_read_needs_a_live_node_of_its_block() -> None:
    model, nodes = dense()
    assert alive(model, nodes, "0.attn_in.0", "0.q.3", "1.mlp_in.0", "1.mlp_neuron.0", "1.mlp_out.5") == {
        "1.mlp_in.0",
        "1.mlp_neuron.0",
        "1.mlp_out.5",
    }


def test_a_write_needs_a_later_reader() -> None:
    model, nodes = dense()
    path = {"0.mlp_in.1", "0.mlp_neuron.4", "0.mlp_out.2"}
    nothing = torch.zeros(6, dtype=torch.bool)
    assert alive(model, nodes, *path) == path  # the head reads all
    assert alive(model, nodes, *path, head=nothing) == path - {"0.mlp_out.2"}  # norms still see it
    assert alive(model, nodes, *path, head=torch.arange(6) == 2) == path
    assert "0.mlp_out.2" in alive(model, nodes, *path, "1.attn_in.2", head=nothing)
    assert "0.mlp_out.2" not in alive(model, nodes, *path, "1.attn_in.3", "0.attn_in.2", head=nothing)
    through = {"0.attn_in.1", "0.v.4", "0.attn_out.2"}
    assert alive(model, nodes, *through, head=nothing) == through - {"0.attn_out.2"}
    assert "0.attn_out.2" in alive(model, nodes, *through, "0.mlp_in.2", head=nothing)


def test_layer_scale_of_zero_cuts() -> None:
    model, nodes = dense("layer scale")  # of channel 1
    assert (
        alive(model, nodes, "0.mlp_in.1", "0.mlp_neuron.4", "0.mlp_out.1", "0.attn_in.1", "0.v.4", "0.attn_out.1")
        == set()
    )


def test_all_of_a_dense_model_is_live() -> None:
    model, nodes = dense()
    everything = torch.ones(1, nodes.n, dtype=torch.bool)
    assert live_nodes(wiring(model, nodes), everything, torch.zeros(nodes.n)).all()
