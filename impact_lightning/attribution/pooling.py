"""Pooling: which tokens the head reads, and with which weights."""

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.types import UserError


def pooled_tokens(model: VisionTransformer) -> slice:
    """Return the tokens that the head reads: the class token, also distillation token, or all that it averages."""
    if model.attn_pool is not None or model.global_pool not in ("token", "avg"):
        raise UserError(f"no attribution rule for global_pool {model.global_pool!r}: known are 'token' and 'avg'")
    if isinstance(model, VisionTransformerDistilled):
        return slice(0, 2)
    if model.global_pool == "token":
        return slice(0, 1)
    return slice(0 if model.pool_include_prefix else model.num_prefix_tokens, None)


def pooled_row(model: VisionTransformer, tokens: Tensor) -> Tensor:
    """Return the weight of each of the tokens `(B, T, D)` in what the head reads, `(B, T)`; each row sums to one."""
    row = torch.zeros_like(tokens[:, :, 0])
    read = row[:, pooled_tokens(model)]
    read.fill_(1 / read.shape[1])
    return row
