"""Baselines that look at no model: a method that is no better than these explains nothing."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.image_seed import image_generators
from impact_lightning.attribution.method import Method, admit, grid_size


@dataclass(frozen=True)
class Random(Method):
    """Uniform noise in each patch: a pure function of the seed and of the image's pixels, whatever else is in a batch.

    Args:
        seed: Seed of the noise.
    """

    seed: int = 0

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        size = grid_size(admit(model, images, targets), images)
        noise = [torch.rand(size, generator=g, dtype=images.dtype) for g in image_generators(self.seed, images)]
        return torch.stack(noise).to(images.device)


@dataclass(frozen=True)
class Centre(Method):
    """How much closer to the centre of the image than a corner a patch is: photographs show things there."""

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        gh, gw = grid_size(admit(model, images, targets), images)
        y, x = (torch.arange(n, dtype=images.dtype, device=images.device) - (n - 1) / 2 for n in (gh, gw))
        distance = torch.hypot(y[:, None], x)
        return (distance.max() - distance).repeat(len(images), 1, 1)
