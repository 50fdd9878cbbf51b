"""LeGrad (Bousselham et al. 2024, arXiv 2404.03214): where the score of each block is sensitive to attention."""

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.method import (
    Method,
    admit,
    differentiating,
    on_grid,
    outside_inference,
    own_logits,
    refuse_non_finite,
)
from impact_lightning.attribution.pooling import pooled_tokens
from impact_lightning.attribution.trace import Block, Place, attend, attention_places, prob_gradients, tracing


@dataclass(frozen=True)
class LeGrad(Method):
    """Sum over blocks of `mean over heads and queries of max(0, ds_l / dA_l)`, with s_l the logit after block l.

    The logit after a block is that of the final norm and head on what the block writes. Each block has a graph of its
    own, so that one backward serves all, and none goes through more than a block.
    """

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        model = admit(model, images, targets)
        rows, blocks = pooled_tokens(model), range(len(model.blocks))
        with differentiating(images):
            with tracing(model, blocks, _places, leaves=blocks) as trace:
                model(outside_inference(images))
            targets = outside_inference(targets)
            scores = [own_logits(model.forward_head(model.norm(seen["resid_post"])), targets).sum() for seen in trace]
            gradients = torch.autograd.grad(torch.stack(scores).sum(), [seen["mixed"] for seen in trace])
            with torch.no_grad():
                maps = [self._of_block(model.blocks[i], trace[i], gradients[i], rows) for i in blocks]
        return refuse_non_finite(on_grid(model, images, torch.stack(maps).sum(0)), "the map")

    def _of_block(self, block: Any, seen: Block, gradient: Tensor, rows: slice) -> Tensor:
        """Return what one block adds, `(B, T)`; queries that the head does not read have no gradient."""
        weights = prob_gradients(block, attend(block, seen, rows), gradient, rows).clamp_(min=0)  # (B, H, R, T)
        return weights.sum(2).mean(1) / seen["q"].shape[2]


def _places(block: Any) -> dict[str, Place]:
    return attention_places(block) | {"resid_post": (block, "output")}
