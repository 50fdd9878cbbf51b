"""Grad-CAM for vision transformers: channels of the last block's tokens, weighted by their mean gradient."""

from dataclasses import dataclass

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
from impact_lightning.backbones import capture, patch


@dataclass(frozen=True)
class GradCAM(Method):
    """Positive part of `sum_c (mean_t dy/da_tc) a_tc`, with a the patch tokens that the last block's attention reads.

    Not what the block writes: with a class token the patches have no gradient there.
    """

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        model = admit(model, images, targets)
        block = f"blocks.{len(model.blocks) - 1}"
        cut = patch(model, {f"{block}.resid_pre": lambda x: x.detach().requires_grad_()})
        with differentiating(images), cut, capture(model, f"{block}.attn_in", stop=False) as captured:
            logits = model(outside_inference(images))
            own = own_logits(logits, outside_inference(targets)).sum()
            tokens = captured[f"{block}.attn_in"]
            (gradient,) = torch.autograd.grad(own, tokens)
        tokens = tokens.detach()
        weights = gradient[:, model.num_prefix_tokens :].mean(1, keepdim=True)  # (B, 1, D)
        maps = (weights * tokens).sum(2).clamp(min=0)  # (B, T)
        return refuse_non_finite(on_grid(model, images, maps), "the map")
