"""Folding: a circuit written into the weights of a copy, which then costs one plain forward and needs no gates."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.mlp import SwiGLU
from timm.models.vision_transformer import LayerScale, VisionTransformer  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn.utils import parametrize

from impact_lightning.backbones import check_supported
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.types import UserError


def fold(model: nn.Module, nodes: Nodes, mask: Tensor, mu: Tensor) -> VisionTransformer:
    """Return a copy of a model that computes a circuit without gates.

    The copy is an ordinary timm model: every linear layer of its blocks has a bias, and none of them LayerScale.

    Args:
        model: A vision transformer in evaluation mode.
        nodes: Its nodes.
        mask: Which nodes are on, from 0 to 1, `(n,)`.
        mu: What replaces them where they are off, `(n,)`: one constant for each node, the same on all tokens.
    """
    return Folder(model, nodes).load(mask, mu)


class Folder:
    """A copy of a model into which one circuit after another is folded.

    The weights of the model are read anew at each `load`, and never changed.

    Args:
        model: A vision transformer in evaluation mode.
        nodes: Its nodes.
    """

    def __init__(self, model: nn.Module, nodes: Nodes) -> None:
        source = check_foldable(model)
        if len(source.blocks) != len(nodes.heads):
            raise UserError(f"the model has {len(source.blocks)} blocks, and the nodes are of {len(nodes.heads)}")
        self.n = nodes.n
        self.model: VisionTransformer = deepcopy(source).requires_grad_(False)
        self._folds: list[_Fold] = []
        for i, (block, copy) in enumerate(zip(source.blocks, self.model.blocks, strict=True)):
            self._folds += _folds_of(block, copy, nodes, i)
            copy.ls1, copy.ls2 = nn.Identity(), nn.Identity()

    @torch.no_grad()
    def load(self, mask: Tensor, mu: Tensor) -> VisionTransformer:
        """Write a circuit into the weights of the copy, and return the copy: the same object each time.

        Args:
            mask: Which nodes are on, from 0 to 1, `(n,)`.
            mu: What replaces them where they are off, `(n,)`.
        """
        for name, table in {"mask": mask, "mu": mu}.items():
            if table.shape != (self.n,):
                raise UserError(
                    f"{name} of shape {tuple(table.shape)} cannot be folded: weights hold one number for each of the "
                    f"{self.n} nodes, the same on all tokens and images; run other circuits through gates"
                )
        weight = self._folds[0].source.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        m = mask.to(weight.device, wide)
        off = (1 - m) * mu.to(weight.device, wide)
        for one in self._folds:
            one.write(m, off)
        return self.model


@dataclass(frozen=True)
class _Fold:
    """A linear layer `y = W x + b` that reads gated nodes, and may write others after a scale gamma.

    `W' = diag(m_out gamma) W diag(m_in)`, `b' = m_out gamma (b + W ((1 - m_in) mu_in)) + (1 - m_out) mu_out`.

    Args:
        source: The layer.
        target: The layer of the copy.
        reads: Nodes of its input; None where it reads none.
        writes: Nodes of its output; None where it writes none.
        gamma: LayerScale between the layer and the nodes that it writes.
    """

    source: nn.Linear
    target: nn.Linear
    reads: slice | None
    writes: slice | None
    gamma: Tensor | None = None

    def write(self, m: Tensor, off: Tensor) -> None:
        """Write `W'` and `b'`.

        Args:
            m: The mask `(n,)`.
            off: `(1 - m) mu` `(n,)`.
        """
        w, b = self.source.weight, self.source.bias  # (out, in), (out,)
        weight = self.target.weight
        bias = torch.zeros(len(w), dtype=m.dtype, device=m.device) if b is None else b.to(m.dtype)
        if self.reads is None:
            weight.copy_(w)
        else:
            torch.mul(w, m[self.reads], out=weight)
            bias = torch.addmv(bias, w.to(m.dtype), off[self.reads])
        if self.writes is not None:
            on = m[self.writes] if self.gamma is None else m[self.writes] * self.gamma.to(m.dtype)
            weight.mul_(on[:, None])
            bias = torch.addcmul(off[self.writes], on, bias)
        self.target.bias.copy_(bias)


def _folds_of(block: Any, copy: Any, nodes: Nodes, i: int) -> list[_Fold]:
    """Return the linear layers of block i and what they read and write; their copies get a bias."""
    at = {name: nodes.site(i, name).of for name in ("attn_in", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")}
    qkv = slice(nodes.site(i, "q").of.start, nodes.site(i, "v").of.stop)
    read_by = ("fc1_g", "fc1_x") if isinstance(block.mlp, SwiGLU) else ("fc1",)
    plan: list[tuple[str, slice | None, slice | None, Tensor | None]] = [
        ("attn.qkv", at["attn_in"], qkv, None),
        ("attn.proj", None, at["attn_out"], _gamma(block.ls1)),  # v lies on the rows of qkv
        *((f"mlp.{name}", at["mlp_in"], None, None) for name in read_by),
        ("mlp.fc2", at["mlp_neuron"], at["mlp_out"], _gamma(block.ls2)),
    ]
    folds = []
    for name, reads, writes, gamma in plan:
        source, target = block.get_submodule(name), copy.get_submodule(name)
        for side, width in ((reads, source.in_features), (writes, source.out_features)):
            if side is not None and side.stop - side.start != width:
                raise UserError(f"blocks.{i}.{name} has {width} channels and {side.stop - side.start} nodes")
        if target.bias is None:
            target.bias = nn.Parameter(source.weight.new_zeros(source.out_features), requires_grad=False)
        folds.append(_Fold(source, target, reads, writes, gamma))
    return folds


def _gamma(scale: Any) -> Tensor | None:
    return None if isinstance(scale, nn.Identity) else scale.gamma


def check_foldable(model: nn.Module) -> VisionTransformer:
    """Return the vision transformer inside `model`, or refuse what weights alone cannot hold."""
    transformer = check_supported(model)
    if getattr(transformer, "activation_topk", None) is not None:
        raise UserError("activation_topk cannot be folded: what flows on depends on the image; run it through gates")
    for name, module in transformer.named_modules():
        if module.training:
            raise UserError(f"{name or 'the model'} is in training mode: call model.eval() before folding")
        if name.startswith("blocks") and (module._forward_hooks or module._forward_pre_hooks):
            raise UserError(f"{name} has hooks, which a folded copy would run too: remove them before folding")
    for i, block in enumerate(transformer.blocks):
        for part in ("ls1", "ls2"):
            scale = getattr(block, part)
            if not isinstance(scale, LayerScale | nn.Identity):
                raise UserError(f"blocks.{i}.{part} is a {type(scale).__name__}: only LayerScale can be folded")
        for part in ("attn", "mlp"):
            for name, layer in getattr(block, part).named_children():
                if name in ("qkv", "proj", "fc1", "fc1_g", "fc1_x", "fc2"):
                    _check_linear(f"blocks.{i}.{part}.{name}", layer)
    return transformer


def _check_linear(name: str, layer: nn.Module) -> None:
    plain = isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
    if not plain or parametrize.is_parametrized(layer):
        raise UserError(f"{name} is a {type(layer).__name__}: circuits are folded into a torch.nn.Linear")
