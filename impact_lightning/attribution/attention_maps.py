"""Maps of attention alone: what the pooled tokens attended to, in the last block or through all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.method import (
    Method,
    admit,
    differentiating,
    on_grid,
    outside_inference,
    refuse_non_finite,
)
from impact_lightning.attribution.pooling import pooled_row
from impact_lightning.attribution.trace import attend, attention_places, tracing
from impact_lightning.types import UserError


@dataclass(frozen=True)
class RawAttention(Method):
    """Attention of the last block, `r mean_heads A`, with r the pooling's own weights of tokens; no class has a say."""

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        model = admit(model, images, targets)
        with differentiating(images), torch.no_grad():
            last = len(model.blocks) - 1
            for row, probs in _attention(model, outside_inference(images), [last]):
                rolled = row[:, None] @ probs.mean(1)  # (B, 1, T) x (B, T, T) -> (B, 1, T)
        return refuse_non_finite(on_grid(model, images, rolled[:, 0]), "the attention")


@dataclass(frozen=True)
class Rollout(Method):
    """Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928): `r Â_L ... Â_1`, rows of `Â ~ A + I` sum to one.

    No class has a say.

    Args:
        heads: What stands for the heads of a block in each entry.
        discard: Share of the entries of A, the smallest of each image and block, that are set to zero.
    """

    heads: Literal["mean", "max", "min"] = "mean"
    discard: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 <= self.discard < 1:
            raise UserError(f"Rollout: discard {self.discard} must be at least 0 and below 1")

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        model = admit(model, images, targets)
        blocks = range(len(model.blocks))[::-1]
        rolled: Tensor | None = None
        with differentiating(images), torch.no_grad():
            for row, probs in _attention(model, outside_inference(images), blocks):
                rolled = self._hop(row if rolled is None else rolled, probs)
        assert rolled is not None
        return refuse_non_finite(on_grid(model, images, rolled), "the rollout")

    def _hop(self, row: Tensor, probs: Tensor) -> Tensor:
        """Return `r Â` for rows `(B, T)` and probabilities `(B, H, T, T)`."""
        fused = probs.mean(1) if self.heads == "mean" else probs.amax(1) if self.heads == "max" else probs.amin(1)
        n_dropped = int(self.discard * fused[0].numel())
        if n_dropped:
            smallest = fused.flatten(1).topk(n_dropped, largest=False).indices
            fused = fused.flatten(1).scatter(1, smallest, 0.0).view_as(fused)
        shares = row / (1 + fused.sum(2))  # the row sums of A + I
        return shares + (shares[:, None] @ fused)[:, 0]


def _attention(model: VisionTransformer, images: Tensor, blocks: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pooling's weights of tokens `(B, T)` and the probabilities `(B, H, T, T)` of each block."""
    with tracing(model, blocks, attention_places) as trace:
        model(images)
    row = pooled_row(model, trace[0]["qkv"])
    for i, seen in zip(blocks, trace, strict=True):
        yield row, attend(model.blocks[i], seen).probs
