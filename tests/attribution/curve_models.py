"""Small models in float64 for tests of curves."""

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

CLASSES = 5
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"reg_tokens": 2, "init_values": 0.5, "no_embed_class": True, "qk_norm": True},
    "dynamic size": {"dynamic_img_size": True},
    "average": {"global_pool": "avg", "class_token": False},
    "one block": {"depth": 1},
}


def vit(name: str = "vit_tiny_patch16_224", **changes: Any) -> VisionTransformer:
    """Return a transformer of 4 x 4 patches whose branches matter."""
    torch.manual_seed(0)
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
    model = timm.create_model(name, **(args | changes)).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    assert isinstance(model, VisionTransformer)
    return model.requires_grad_(False)


class Convolution(nn.Module):
    """Any classifier that is no transformer; it counts the images that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Flatten(), nn.LazyLinear(CLASSES))
        self.seen = 0
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        self.batches.append(len(images))
        logits: Tensor = self.layers(images)
        return 4 * logits


def convolution(size: int = 16) -> Convolution:
    """Return it in float64."""
    model = Convolution().double().eval()
    model(torch.zeros(1, 3, size, size, dtype=torch.float64))
    model.seen, model.batches = 0, []
    return model.requires_grad_(False)


def pictures(n: int = 3, size: int = 16, seed: int = 1) -> Tensor:
    """Return images `(n, 3, size, size)` float64."""
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def relevance(n: int = 3, side: int = 4, seed: int = 2) -> Tensor:
    """Return maps `(n, side, side)`."""
    return torch.randn(n, side, side, generator=torch.Generator().manual_seed(seed))
