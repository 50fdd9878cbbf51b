"""Live nodes: kept nodes that carry something of the image to something that reads it."""

import torch
from torch import Tensor

from impact_lightning.circuits.edges import Role, Wiring, checked


def live_nodes(wiring: Wiring, masks: Tensor, mu: Tensor, head_reads: Tensor | None = None) -> Tensor:
    """Return which nodes of circuits are live, bool `(P, n)`; the others are off, constant, or read by none.

    A node that is not live can be replaced by the constant that it is, or by anything if nobody reads it, and the
    logits stay. The rules hold where `mu` is the same for all tokens. A write that nobody reads still has a part in the
    statistics of norms, so that what feeds it is live though it is not.

    Args:
        wiring: Which weights of the model are nonzero.
        masks: Which nodes are on, bool `(P, n)`.
        mu: What nodes are replaced by where they are off, `(n,)` or `(P, n)`; only that of q has a part.
        head_reads: Which channels of the residual stream the head reads, bool `(D,)` or `(P, D)`; all if None.
    """
    masks = checked(wiring, masks)
    asks = masks | (mu.to(wiring.device) != 0)  # a query that is off but not zero still tells keys apart
    live = torch.zeros_like(masks)
    is_read = _of_head(wiring, masks, head_reads)  # (P, D) behind the block that the loop is at
    for block in reversed(range(len(wiring.nodes.heads))):
        _mlp(wiring, block, masks, live, is_read)
        is_read = is_read | masks[:, wiring.nodes.site(block, "mlp_in").of]
        _attention(wiring, block, masks, live, is_read, asks)
        is_read = is_read | masks[:, wiring.nodes.site(block, "attn_in").of]
    return live


def _of_head(wiring: Wiring, masks: Tensor, head_reads: Tensor | None) -> Tensor:
    width = wiring.nodes.site(0, "attn_out").width
    everything = torch.ones(width, dtype=torch.bool, device=masks.device)
    return (everything if head_reads is None else head_reads.to(masks.device)).expand(len(masks), width)


def _mlp(wiring: Wiring, block: int, masks: Tensor, live: Tensor, is_read: Tensor) -> None:
    """Find the live nodes of an MLP; one round suffices, for what it takes away was needed by none that stay."""
    mlp_in, neuron, mlp_out = (wiring.nodes.site(block, name).of for name in ("mlp_in", "mlp_neuron", "mlp_out"))
    has_in, has_out = _reached(wiring, block, "fc1", masks), _reaching(wiring, block, "fc2", masks)
    live[:, neuron] = masks[:, neuron] & has_in & has_out
    live[:, mlp_in] = masks[:, mlp_in] & _reaching(wiring, block, "fc1", live)
    live[:, mlp_out] = masks[:, mlp_out] & _reached(wiring, block, "fc2", live) & is_read


def _attention(wiring: Wiring, block: int, masks: Tensor, live: Tensor, is_read: Tensor, asks: Tensor) -> None:
    """Find the live nodes of attention, likewise in one round."""
    nodes, heads = wiring.nodes, wiring.nodes.heads[block]
    attn_in, q, k, v, attn_out = (nodes.site(block, name).of for name in ("attn_in", "q", "k", "v", "attn_out"))
    in_q, in_k, in_v = _reached(wiring, block, "qkv", masks).chunk(3, 1)
    live[:, v] = masks[:, v] & in_v & _reaching(wiring, block, "proj", masks)
    is_looking = _any_of_head(live[:, v], heads)
    shift = wiring.query_shifts[block]
    asked = asks[:, q] if shift is None else _any_of_head(asks[:, q] | shift, heads)
    live[:, k] = masks[:, k] & in_k & is_looking & asked
    answered = live[:, k] if shift is None else _any_of_head(live[:, k], heads)
    live[:, q] = masks[:, q] & in_q & is_looking & answered
    live[:, attn_in] = masks[:, attn_in] & _reaching(wiring, block, "qkv", live)
    live[:, attn_out] = masks[:, attn_out] & _reached(wiring, block, "proj", live) & is_read


def _reached(wiring: Wiring, block: int, role: Role, on: Tensor) -> Tensor:
    """Return which outputs of a matrix have an edge from a node that is on."""
    return torch.stack([part.into(on) > 0 for part in wiring.of(block, role)]).any(0)


def _reaching(wiring: Wiring, block: int, role: Role, on: Tensor) -> Tensor:
    """Return which inputs of a matrix have an edge to a node that is on."""
    return torch.stack([part.out_of(on) > 0 for part in wiring.of(block, role)]).any(0)


def _any_of_head(on: Tensor, heads: int) -> Tensor:
    """Return for each channel whether any of its head is on, `(P, H*h) -> (P, H*h)`."""
    by_head: Tensor = on.unflatten(1, (heads, -1))
    return by_head.any(2, keepdim=True).expand_as(by_head).flatten(1)
