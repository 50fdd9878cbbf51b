"""Relevance from what a block writes down to what it reads, by the rules of Chefer et al. 2021 in closed form."""

from typing import Any, Literal, NamedTuple

import torch
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from impact_lightning.attribution.rules import EPS, safe_div, split_sum
from impact_lightning.attribution.trace import Attended, Block, all_places, from_heads, to_heads, unscaled_places
from impact_lightning.attribution.z_plus import ZPlus
from impact_lightning.types import UserError


class ThroughAttention(NamedTuple):
    """Relevance on its way through the attention of a block."""

    past: Tensor  # (B, R, D) of what the block reads, along the residual stream
    shares: Tensor  # (B, H, R, h) S = R_O / O
    probs: Tensor  # (B, H, R, T) R_A: of the attention probabilities


Rules = Literal["chefer", "impact_reported"]


class BlockRelevance:
    """The rules of one block; norms, activation function and softmax pass relevance unchanged.

    In the last block only the tokens that the head reads have relevance: R of all T tokens, at `rows`.

    Args:
        block: A block of a model that `refuse_unruled` accepts.
    """

    places = staticmethod(all_places)  # what has to be traced

    def __init__(self, block: Any) -> None:
        self.n_heads = int(block.attn.num_heads)
        self.scale = float(block.attn.scale)
        self.fc1 = ZPlus(block.mlp.fc1)
        self._prepare(block)

    def _prepare(self, block: Any) -> None:
        self.qkv = ZPlus(block.attn.qkv)
        self.proj = ZPlus(block.attn.proj, getattr(block.ls1, "gamma", None))
        self.fc2 = ZPlus(block.mlp.fc2, getattr(block.ls2, "gamma", None))

    def to_attention(self, seen: Block, attended: Attended, relevance: Tensor, rows: slice) -> ThroughAttention:
        """Return what arrives at the attention probabilities of the relevance `(B, R, D)` of what the block wrote."""
        at = {name: x[:, rows] for name, x in seen.items() if name not in ("q", "k")}
        past, r = split_sum(at["resid_mid"], at["mlp_out"], at["resid_post"], relevance)
        r = self.through_mlp_out(at, r)
        r = past + self.fc1(at["mlp_in"], at["hidden"], r)
        past, r = split_sum(at["resid_pre"], at["attn_out"], at["resid_mid"], r)
        r = self.through_attn_out(at, r)
        # O = A v:  S = R_O / O,  R_A = A * (S v^T) / 2
        shares = safe_div(to_heads(r, self.n_heads), to_heads(at["mixed"], self.n_heads))
        return ThroughAttention(past, shares, (shares @ (0.5 * attended.v).mT).mul_(attended.probs))

    def through_mlp_out(self, at: Block, relevance: Tensor) -> Tensor:
        """Return the relevance of the neurons from that of what the MLP adds."""
        return self.fc2(at["neuron"], at["mlp_out"], relevance)

    def through_attn_out(self, at: Block, relevance: Tensor) -> Tensor:
        """Return the relevance of what the heads write from that of what the attention adds."""
        return self.proj(at["proj_in"], at["attn_out"], relevance)

    def to_input(self, seen: Block, attended: Attended, relevance: ThroughAttention, rows: slice) -> Tensor:
        """Return the relevance of what the block read, `(B, T, D)`."""
        q, k, v = 0.5 * attended.q, attended.k, 0.5 * attended.v  # each factor of a product has half the relevance
        r_v = (attended.probs.mT @ relevance.shares).mul_(v)
        # the rule divides by q k^T; q and the scores both hold the factor 1/sqrt(h), which cancels
        s = safe_div(relevance.probs, attended.scores, EPS * self.scale)
        r_q = torch.zeros_like(v)
        r_q[:, :, rows] = (s @ k).mul_(q)
        r_k = (s.mT @ q).mul_(k)
        r = torch.stack([r_q, r_k, r_v]).permute(1, 3, 0, 2, 4).flatten(2)  # (B, T, 3*H*h)
        r = self.qkv(seen["attn_in"], seen["qkv"], r)
        r[:, rows] += relevance.past
        return r


class ReportedBlockRelevance(BlockRelevance):
    """The rules reported for DeiT-III in IMPACT (arXiv 2603.15919), where they differ.

    LayerScale divides relevance by gamma, which is not conservative; queries and keys have no relevance, and values
    have all of it, as in conservative propagation, which takes attention for a constant.
    """

    places = staticmethod(unscaled_places)

    def _prepare(self, block: Any) -> None:
        self.gammas = [getattr(scale, "gamma", None) for scale in (block.ls1, block.ls2)]
        self.proj, self.fc2 = ZPlus(block.attn.proj), ZPlus(block.mlp.fc2)
        self.v = ZPlus(block.attn.qkv, outputs=slice(-block.attn.qkv.out_features // 3, None))

    def through_mlp_out(self, at: Block, relevance: Tensor) -> Tensor:
        """Return the relevance of the neurons from that of what the MLP adds."""
        return self.fc2(at["neuron"], at["fc2_out"], _unscaled(relevance, self.gammas[1]))

    def through_attn_out(self, at: Block, relevance: Tensor) -> Tensor:
        """Return the relevance of what the heads write from that of what the attention adds."""
        return self.proj(at["proj_in"], at["proj_out"], _unscaled(relevance, self.gammas[0]))

    def to_input(self, seen: Block, attended: Attended, relevance: ThroughAttention, rows: slice) -> Tensor:
        """Return the relevance of what the block read, `(B, T, D)`."""
        r_v = from_heads((attended.probs.mT @ relevance.shares).mul_(attended.v))
        r = self.v(seen["attn_in"], seen["qkv"].chunk(3, dim=-1)[2], r_v)
        r[:, rows] += relevance.past
        return r


def _unscaled(relevance: Tensor, gamma: Tensor | None) -> Tensor:
    return relevance if gamma is None else relevance * safe_div(torch.ones_like(gamma), gamma)


RULES: dict[Rules, type[BlockRelevance]] = {"chefer": BlockRelevance, "impact_reported": ReportedBlockRelevance}


def refuse_unruled(model: VisionTransformer) -> None:
    """Refuse a model with a part that no rule is known for."""
    for i, block in enumerate(model.blocks):
        mlp: Any = block.mlp
        if type(mlp).forward is not Mlp.forward or not isinstance(mlp.fc1, nn.Linear):
            raise UserError(f"blocks.{i}.mlp is a {type(mlp).__name__}: relevance has no rule for gated units yet")
    for name in ("head", "head_dist"):
        head = getattr(model, name, None)
        if head is not None and not isinstance(head, nn.Linear):
            raise UserError(f"{name} is a {type(head).__name__}: relevance starts at a torch.nn.Linear")
