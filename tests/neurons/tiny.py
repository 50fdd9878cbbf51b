"""A small transformer with LayerScale, in float64."""

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

N_CLASSES = 3


def vit(depth: int = 2, *, seed: int = 0) -> VisionTransformer:
    """Return a model whose branches matter, with three classes."""
    torch.manual_seed(seed)
    args: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 8,
        "depth": depth,
        "num_heads": 2,
        "init_values": 1.0,
    }
    model = timm.create_model("vit_tiny_patch16_224", **args, num_classes=N_CLASSES).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    assert isinstance(model, VisionTransformer)
    return model.requires_grad_(False)


def images(n: int = 12, *, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels; the last class has no image."""
    x = torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(n) % (N_CLASSES - 1)
