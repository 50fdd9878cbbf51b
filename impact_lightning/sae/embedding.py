"""An image encoder that has nothing to do with the model that is measured, and says which images look alike."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.backbones import Backbone, fingerprint
from impact_lightning.types import UserError


class Embedding:
    """Pooled features of a frozen timm model; images are scaled to its size and normalised as it was trained.

    Args:
        backbone: The model and its weights.
    """

    def __init__(self, backbone: Backbone) -> None:
        if not (backbone.pretrained or backbone.weights):
            raise UserError(f"embedding: {backbone.name} has random weights; give `weights`, or set `pretrained`")
        self.name = backbone.name
        self.model = backbone.build().eval().requires_grad_(False)
        self.weights = fingerprint(self.model)
        trained: Any = self.model.default_cfg  # how timm's own weights were trained
        self.mean, self.std = (torch.tensor(trained[name]).view(1, -1, 1, 1) for name in ("mean", "std"))

    @property
    def width(self) -> int:
        """Width E of an embedding."""
        return int(self.model.num_features)

    def to(self, device: torch.device) -> "Embedding":
        """Move to a device."""
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def __call__(self, pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        """Return embeddings `(B, E)` of images that were normalised with another mean and deviation."""
        shape = (1, -1, 1, 1)
        images = pixels * pixels.new_tensor(std).view(shape) + pixels.new_tensor(mean).view(shape)
        size = self.model.patch_embed.img_size
        images = F.interpolate(images, size, mode="bicubic", antialias=True) if size else images
        images = (images - self.mean) / self.std
        embedded: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return embedded
