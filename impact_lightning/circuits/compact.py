"""Compaction: a smaller network with the outputs of a circuit; what is off, and what then is constant, is cut out."""

from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn

from impact_lightning.circuits.fold import fold
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.types import UserError


@dataclass(frozen=True)
class Removed:
    """What compaction has cut out of all blocks.

    Args:
        attentions: Blocks whose attention has become a constant.
        mlps: Blocks whose MLP has become a constant.
        heads: Heads, those of the attentions among them.
        qk: Channels of q and k, each with its partner.
        v: Channels of v.
        neurons: Neurons of MLPs.
        reads: Channels of the residual stream that an attention or an MLP no longer reads.
        writes: Channels of the residual stream that an attention or an MLP no longer writes.
        parameters: Numbers in the parameters of the model, beyond those of the network.
    """

    attentions: int = 0
    mlps: int = 0
    heads: int = 0
    qk: int = 0
    v: int = 0
    neurons: int = 0
    reads: int = 0
    writes: int = 0
    parameters: int = 0

    def __add__(self, other: "Removed") -> "Removed":
        """Add up."""
        return Removed(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.parameters:,} parameters: {self.attentions} attentions, {self.mlps} MLPs, {self.heads} heads, "
            f"{self.qk:,} q-k channels, {self.v:,} v channels, {self.neurons:,} neurons; branches read "
            f"{self.reads:,} and write {self.writes:,} channels less"
        )


@torch.no_grad()
def compact(model: nn.Module, nodes: Nodes, mask: Tensor, mu: Tensor) -> tuple[nn.Module, Removed]:
    """Return a smaller network with the outputs of a circuit, and what was cut out.

    It decides by the folded weights: a row of zeros is a constant channel, a column of zeros a channel that nothing
    reads. The residual stream keeps its width, for norms need it. With qk_norm a head keeps its channels of q and k,
    and with a norm before the last linear layer of attention or MLP that layer keeps all of its inputs.

    The network has the model's patch embedding, pooling and head, and other blocks. Its state dict fits the network of
    the same circuit of the same model.

    Args:
        model: A vision transformer in evaluation mode.
        nodes: Its nodes.
        mask: Which nodes are on, from 0 to 1, `(n,)`.
        mu: What replaces them where they are off, `(n,)`.
    """
    network: Any = fold(model, nodes, mask, mu)
    total, blocks = Removed(), []
    for i, block in enumerate(network.blocks):
        attention, from_attention = _cut_attention(block)
        mlp, from_mlp = _cut_mlp(block, f"blocks.{i}.mlp")
        blocks.append(nn.Sequential(attention, mlp))
        total += from_attention + from_mlp
    network.blocks = nn.Sequential(*blocks).requires_grad_(False).eval()
    return network, total + Removed(parameters=_size(model) - _size(network))


# ---------------------------------------------------------------------------------------------------- the network


class Constant(nn.Module):
    """A branch that adds the same numbers to every token: `x + b`."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)  # (D,)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream `(B, T, D)`."""
        return x + self.bias


class Branch(nn.Module):
    """A branch that reads and writes some channels of the residual stream: `x + b`, plus `body(norm(x)[reads])`.

    Args:
        norm: The norm over all channels.
        body: What turns `(B, T, reads)` into `(B, T, writes)`.
        reads: Which channels it reads `(D,)`.
        writes: Which channels it writes `(D,)`.
        bias: What it adds `(D,)`; where it writes, its body adds that already.
    """

    reads: Tensor | None
    writes: Tensor | None

    def __init__(self, norm: nn.Module, body: nn.Module, reads: Tensor, writes: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.norm, self.body = norm, body
        self.register_buffer("reads", None if reads.all() else reads.nonzero()[:, 0])
        self.register_buffer("writes", None if writes.all() else writes.nonzero()[:, 0])
        rest = bias.masked_fill(writes, 0)
        self.bias = nn.Parameter(rest) if rest.any() else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream `(B, T, D)`."""
        y = self.norm(x)
        y = self.body(y if self.reads is None else y.index_select(-1, self.reads))
        x = x if self.bias is None else x + self.bias
        return x + y if self.writes is None else x.index_add(-1, self.writes, y.to(x.dtype))


class Attention(nn.Module):
    """Attention whose heads have p channels of q and k, and r of v: `proj(softmax(scale q k^T) v)`.

    Args:
        qkv: From `(B, T, reads)` to the heads' q, then k, then v, `(B, T, H * (p + p + r))`.
        proj: From `(B, T, H * r)` to `(B, T, writes)`.
        norms: Norms of q, of k and of what the heads say.
        heads: H.
        widths: p and r.
        scale: That of the model: p no longer tells it.
    """

    def __init__(
        self,
        qkv: nn.Linear,
        proj: nn.Linear,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        heads: int,
        widths: tuple[int, int],
        scale: float,
    ) -> None:
        super().__init__()
        self.qkv, self.proj = qkv, proj
        self.q_norm, self.k_norm, self.norm = norms
        self.heads, self.widths, self.scale = heads, widths, scale

    def forward(self, x: Tensor) -> Tensor:
        """Return what attention writes `(B, T, writes)`."""
        p, r = self.widths
        parts = self.qkv(x).split([self.heads * p, self.heads * p, self.heads * r], dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # (B, H, T, p or r)
        q, k = self.q_norm(q), self.k_norm(k)
        # fused kernels want one width for all three; channels of zeros change no product
        q, k, v = (F.pad(part, (0, max(p, r) - part.shape[-1])) if p != r else part for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)[..., :r]
        y = self.norm(y.transpose(1, 2).flatten(2))  # (B, T, H*r)
        return self.proj(y)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """An MLP, with a gate or without: `fc2(norm(combine(fc1(x))))`.

    Args:
        fc1: From `(B, T, reads)` to the neurons, or to their first and then their second factors.
        combine: The activation function, and the product with a gate.
        norm: The norm before fc2.
        fc2: From the neurons to `(B, T, writes)`.
    """

    def __init__(self, fc1: nn.Linear, combine: "Combine", norm: nn.Module, fc2: nn.Linear) -> None:
        super().__init__()
        self.fc1, self.combine, self.norm, self.fc2 = fc1, combine, norm, fc2

    def forward(self, x: Tensor) -> Tensor:
        """Return what the MLP writes `(B, T, writes)`."""
        return self.fc2(self.norm(self.combine(self.fc1(x))))  # type: ignore[no-any-return]


class Combine(nn.Module):
    """What the neurons are, given the outputs of fc1: `act(a)`, `act(a) b` or `a act(b)`.

    Args:
        act: The activation function.
        factors: One, or two with a gate.
        gate_last: Whether the activation function is that of the second factor.
    """

    def __init__(self, act: nn.Module, factors: int, *, gate_last: bool) -> None:
        super().__init__()
        self.act, self.factors, self.gate_last = act, factors, gate_last

    def forward(self, x: Tensor) -> Tensor:
        """Return the neurons `(..., n)` of `(..., factors * n)`."""
        if self.factors == 1:
            return self.act(x)  # type: ignore[no-any-return]
        a, b = x.chunk(2, dim=-1)
        neurons: Tensor = a * self.act(b) if self.gate_last else self.act(a) * b
        return neurons


# ------------------------------------------------------------------------------------------------------- the cuts


def _cut_attention(block: Any) -> tuple[nn.Module, Removed]:
    """Cut the attention of a folded block."""
    attn = block.attn
    heads, width = attn.num_heads, attn.head_dim
    w, b = (t.unflatten(0, (3, heads, width)) for t in (attn.qkv.weight, attn.qkv.bias))  # (3, H, h, D), (3, H, h)
    out = attn.proj.weight.unflatten(1, (heads, width)).permute(1, 2, 0)  # (H, h, D)
    varies, is_read = w.any(-1), out.any(-1)  # (3, H, h), (H, h)

    if isinstance(attn.norm, nn.Identity):
        # rows of the attention matrix sum to one: a constant v is what comes out of its channel
        v = varies[2] & is_read  # (H, h) what is kept
        bias = attn.proj.bias + (out * b[2].masked_fill(v, 0)[..., None]).sum((0, 1))
    else:  # the norm mixes all channels
        v = (varies[2].any() & is_read.any()).expand(heads, width)
        bias = attn.proj.bias if v.any() else attn.proj(attn.norm(b[2].flatten()))
    # q k^T with a constant k is the same for all keys, and softmax ignores it; a constant q still tells keys apart
    qk = varies[1] & (varies[0] | (b[0] != 0))
    if not (isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity)):
        qk = torch.ones_like(qk)
    qk = qk & v.any(1, keepdim=True)

    removed = Removed(heads=_count(~v.any(1)), qk=_count(~qk), v=_count(~v))
    if not v.any():
        return Constant(bias.clone()), removed + Removed(attentions=1, reads=len(bias), writes=len(bias))
    left = v.any(1)
    keep_qk, keep_v = _Packing.of(qk, left), _Packing.of(v, left)
    keep = (keep_qk, keep_qk, keep_v)
    qkv = torch.cat([kept(part).flatten(0, 1) for kept, part in zip(keep, w, strict=True)])  # (H' * (p + p + r), D)
    qkv_bias = torch.cat([kept(part).flatten() for kept, part in zip(keep, b, strict=True)])
    proj = keep_v(out).flatten(0, 1).T  # (D, H' * r)
    reads, writes = qkv.any(0), proj.any(1)
    body = Attention(
        _linear(qkv[:, reads], qkv_bias),
        _linear(proj[writes], bias[writes]),
        norms=(attn.q_norm, attn.k_norm, attn.norm),
        heads=_count(left),
        widths=(keep_qk.width, keep_v.width),
        scale=width**-0.5,
    )
    return Branch(block.norm1, body, reads, writes, bias), removed + _narrowed(reads, writes)


def _cut_mlp(block: Any, name: str) -> tuple[nn.Module, Removed]:
    """Cut the MLP of a folded block."""
    mlp = block.mlp
    layers = [mlp.fc1_g, mlp.fc1_x] if isinstance(mlp, SwiGLU) else [mlp.fc1]
    factors = 2 if isinstance(mlp, SwiGLU | GluMlp) else 1
    w = torch.cat([layer.weight for layer in layers]).unflatten(0, (factors, -1))  # (1 or 2, n, D)
    b = torch.cat([layer.bias for layer in layers]).unflatten(0, (factors, -1))  # (1 or 2, n)
    fc2, bias = mlp.fc2.weight, mlp.fc2.bias  # (D, n), (D,)
    _check_pointwise(f"{name}.act", mlp.act, b[0])
    combine = Combine(mlp.act, factors, gate_last=getattr(mlp, "gate_last", False))
    constants = combine(b.flatten())  # (n,) the neurons, where no input reaches them
    varies, is_read = w.any(-1).any(0), fc2.any(0)  # (n,)

    if isinstance(mlp.norm, nn.Identity):
        kept = varies & is_read
        bias = bias + fc2 @ constants.masked_fill(kept, 0)
    else:  # the norm mixes all neurons
        kept = (varies.any() & is_read.any()).expand(len(varies))
        bias = bias if kept.any() else mlp.fc2(mlp.norm(constants))

    removed = Removed(neurons=_count(~kept))
    if not kept.any():
        return Constant(bias.clone()), removed + Removed(mlps=1, reads=len(bias), writes=len(bias))
    fc1, fc2 = w[:, kept].flatten(0, 1), fc2[:, kept]
    reads, writes = fc1.any(0), fc2.any(1)
    body = Mlp(_linear(fc1[:, reads], b[:, kept].flatten()), combine, mlp.norm, _linear(fc2[writes], bias[writes]))
    return Branch(block.norm2, body, reads, writes, bias), removed + _narrowed(reads, writes)


@dataclass(frozen=True)
class _Packing:
    """The kept channels of each head, moved to the front of it and filled up with zeros to one width.

    Args:
        heads: The heads that are left `(H',)`.
        channels: Their channels, those that are kept first `(H', w)`.
        is_kept: Which of these are kept and which fill up `(H', w)`.
    """

    heads: Tensor
    channels: Tensor
    is_kept: Tensor

    @classmethod
    def of(cls, kept: Tensor, left: Tensor) -> "_Packing":
        """Pack channels `(H, h)` of the heads that are left `(H,)`; a head has at least one."""
        heads = left.nonzero()[:, 0]
        width = max(1, int(kept[heads].sum(1).max()))
        channels = kept[heads].byte().argsort(dim=1, descending=True, stable=True)[:, :width]
        return cls(heads, channels, kept[heads].gather(1, channels))

    @property
    def width(self) -> int:
        """The number of channels of each head."""
        return self.channels.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """Return `(H', w, ...)` of `(H, h, ...)`."""
        picked = x[self.heads[:, None], self.channels]
        return picked.masked_fill(~self.is_kept.view(*self.is_kept.shape, *(1,) * (x.ndim - 2)), 0)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer; without a bias where that is zero."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.contiguous())
    if bias.any():
        layer.bias = nn.Parameter(bias.clone())
    return layer


def _check_pointwise(name: str, act: nn.Module, x: Tensor) -> None:
    """Refuse an activation function that mixes neurons, or has parameters for each: neurons cannot be cut out of it."""
    has_table = any(value.numel() > 1 for value in act.state_dict().values())
    some = torch.linspace(-3, 3, len(x), dtype=x.dtype, device=x.device)
    if has_table or not torch.allclose(act(some[::2]), act(some)[::2], rtol=1e-3, atol=1e-5):
        raise UserError(f"{name} is a {type(act).__name__}, which does not act on each neuron alone: it cannot be cut")


def _narrowed(reads: Tensor, writes: Tensor) -> Removed:
    return Removed(reads=_count(~reads), writes=_count(~writes))


def _count(which: Tensor) -> int:
    return int(which.sum())


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
