"""A vision transformer's forward from tokens: patches are exchanged after they are embedded, and nothing is done twice.

Everything before the first attention works on each patch alone; a convolutional stem, which mixes them, is refused.
Tokens of two images are embedded once, with their queries, keys and values, and mixed as often as wanted. Where the
head reads prefix tokens alone, the last block need not write the others. Both change nothing but the rounding.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from impact_lightning.types import UserError


class Tokens(NamedTuple):
    """What the first block reads."""

    residual: Tensor  # (B, T, D)
    qkv: Tensor | None  # (B, T, 3 * H * h) of the first attention; None where it has to compute them itself

    def mixed(self, other: "Tokens", images: Tensor, removed: Tensor) -> "Tokens":
        """Return tokens `(J, T, D)` of images `(J,)`, those of `other` (of one image, or of as many) where removed.

        Args:
            other: What takes the place.
            images: Which images.
            removed: Which patches, bool `(J, P)`.
        """
        n_prefix = self.residual.shape[1] - removed.shape[1]
        is_other = F.pad(removed, (n_prefix, 0))[:, :, None]  # (J, P) -> (J, T, 1): prefix tokens stay
        parts = [
            None if own is None or new is None else torch.where(is_other, _rows(new, images), own[images])
            for own, new in zip(self, other, strict=True)
        ]
        return Tokens(parts[0], parts[1])  # type: ignore[arg-type]  # there is always a residual stream

    def without(self, images: Tensor, removed: Tensor) -> "Tokens":
        """Return the tokens of images `(J,)` that stay, as many in each: `(J, T - removed, D)`."""
        n_prefix = self.residual.shape[1] - removed.shape[1]
        stays = F.pad(~removed, (n_prefix, 0), value=True)  # (J, T)
        parts = [None if own is None else own[images][stays].view(len(images), -1, own.shape[2]) for own in self]
        return Tokens(parts[0], parts[1])  # type: ignore[arg-type]  # there is always a residual stream


class TokenForward:
    """Runs a vision transformer of timm from its tokens.

    Args:
        model: The model; one that `check_supported` has accepted, in evaluation mode.
    """

    def __init__(self, model: VisionTransformer) -> None:
        if not isinstance(model.patch_embed, PatchEmbed):
            raise UserError(f"patch_embed is a {type(model.patch_embed).__name__}: it may mix patches")
        self.model = model
        self.blocks: list[Any] = list(model.blocks)
        self.n_prefix: int = model.num_prefix_tokens
        self.from_qkv = _is_plain(self.blocks[0])
        self.reads_prefix = model.global_pool == "token" and model.attn_pool is None and self.n_prefix > 0
        self.is_short = self.reads_prefix and _is_plain(self.blocks[-1])

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        h, w = images.shape[-2:]
        rows, columns = self.model.patch_embed.dynamic_feat_size((h, w))
        return int(rows), int(columns)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of images `(B, C, h, w)`."""
        return self.logits(Tokens(self._residual(images), None))

    def tokens(self, images: Tensor) -> Tokens:
        """Return the tokens of images `(B, C, h, w)`."""
        residual = self._residual(images)
        first = self.blocks[0]
        return Tokens(residual, first.attn.qkv(first.norm1(residual)) if self.from_qkv else None)

    def _residual(self, images: Tensor) -> Tensor:
        model: Any = self.model
        residual: Tensor = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        return residual

    def logits(self, tokens: Tokens) -> Tensor:
        """Return the logits `(B, C)` of tokens."""
        x, qkv = tokens
        for i, block in enumerate(self.blocks):
            n_read = self.n_prefix if self.is_short and i == len(self.blocks) - 1 else x.shape[1]
            if n_read < x.shape[1] or (i == 0 and qkv is not None):
                x = _plain_block(block, x, qkv if i == 0 else None, n_read)
            else:
                x = block(x)
        logits: Tensor = self.model.forward_head(self.model.norm(x))
        return logits


def _plain_block(block: Any, x: Tensor, qkv: Tensor | None, n_read: int) -> Tensor:
    """Return the first `n_read` tokens `(B, n_read, D)` that a block writes, perhaps from known q, k and v."""
    attention = block.attn
    width = attention.proj.in_features
    if qkv is None:
        normed, weight, bias = block.norm1(x), attention.qkv.weight, attention.qkv.bias
        q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        q, kv = F.linear(normed[:, :n_read], weight[:width], q_bias), F.linear(normed, weight[width:], kv_bias)
    else:
        q, kv = qkv[:, :n_read, :width], qkv[:, :, width:]
    parts = [part.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for part in (q, *kv.split(width, dim=2))]
    q, k, v = attention.q_norm(parts[0]), attention.k_norm(parts[1]), parts[2]  # (B, H, T, h)
    heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, n_read, H * h)
    x = x[:, :n_read] + block.ls1(attention.proj(attention.norm(heads)))
    written: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
    return written


def _is_plain(block: Any) -> bool:
    """Return whether a block's attention is nothing but its formula: no gate, no hook that sees what is left out."""
    watched: list[nn.Module] = [block, *block.modules()]
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in watched)
    return not hooked and getattr(block.attn, "gate", None) is None and type(block.attn.qkv) is nn.Linear


def _rows(x: Tensor, images: Tensor) -> Tensor:
    return x if len(x) == 1 else x[images]
