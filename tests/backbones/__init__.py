"""Small vision transformers with random weights: one of every kind that has sites."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.backbones import Backbone
from impact_lightning.backbones.backbone import ModelArgs

KINDS: dict[str, ModelArgs] = {
    "deit3_small_patch16_224": {"init_values": 0.1},  # LayerScale, no class token in the position embedding
    "deit3_base_patch16_224": {"init_values": 0.1},
    "vit_base_patch16_224": {},
    "vit_base_patch16_gap_224": {"qk_norm": True},  # average pooling without class token
    "vit_small_patch14_reg4_dinov2": {"init_values": 0.1},  # registers, no head
    "vit_giant_patch14_dinov2": {"init_values": 0.1},  # packed SwiGLU
    "aimv2_large_patch14_224": {},  # SwiGLU with two inputs, RMSNorm
    "vit_base_patch16_siglip_224": {},  # map pooling
    "vit_base_patch16_siglip_gap_224": {},
    "vit_base_patch16_clip_224": {},  # norm before the first block
    "beit3_base_patch16_224": {},  # norms before attn.proj and mlp.fc2
    "deit_tiny_distilled_patch16_224": {},  # two heads
}


def tiny(name: str = "deit3_small_patch16_224", *, depth: int = 2, seed: int = 0) -> VisionTransformer:
    """Build a small model of this kind in evaluation mode, every parameter random and of a size that matters."""
    size: ModelArgs = {
        "img_size": 24,
        "patch_size": 8,
        "embed_dim": 32,
        "num_heads": 2,
    }
    model = Backbone(name, model_args={**size, **KINDS[name], "depth": depth}).build().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # timm starts class tokens, biases and LayerScale at nearly nothing
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def random_images(n: int = 2, *, seed: int = 0) -> Tensor:
    """Return `(n, 3, 24, 24)` normal noise."""
    return torch.randn(n, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
