"""Maps of the gradient of a logit by pixels: times the input, integrated along a path, or averaged over noise."""

from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.image_seed import image_generators
from impact_lightning.attribution.method import (
    Method,
    admit,
    differentiating,
    outside_inference,
    own_logits,
    patch_sums,
    refuse_non_finite,
)
from impact_lightning.types import UserError

AT_ONCE = 32  # images that are differentiated together, where there are several for each image that is explained


@dataclass(frozen=True)
class GradientTimesInput(Method):
    """Sum over a patch of `sum_c x_c * dy/dx_c`, with y the logit.

    Args:
        absolute: Take the absolute value of each pixel, after the sum over its channels.
    """

    absolute: bool = False

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        model = admit(model, images, targets)
        _, gradients = pixel_gradients(model, images, targets)
        pixels = (images * gradients).sum(1)  # (B, 3, h, w) -> (B, h, w)
        return refuse_non_finite(patch_sums(model, pixels.abs() if self.absolute else pixels), "the map")


@dataclass(frozen=True)
class IntegratedGradients(Method):
    """Integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) from a baseline b, by the midpoint rule.

        (x - b) * mean_j dy/dx (b + (j - 1/2) / m * (x - b))

    Args:
        steps: Number m of points on the path.
        baseline: Where it starts: `zero_norm` is zero after normalisation, `mean` each channel's mean of the image.
        at_once: Images x steps that are differentiated together.
    """

    steps: int = 20
    baseline: Literal["zero_norm", "mean"] = "zero_norm"
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        """Refuse a path without points."""
        if self.steps < 1 or self.at_once < 1:
            raise UserError(f"IntegratedGradients: steps {self.steps} and at_once {self.at_once} must be at least 1")

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        return self.with_error(model, images, targets)[0]

    def with_error(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps, and by how much each misses completeness: `sum of the map - (y(x) - y(b))`, `(B,)`."""
        model = admit(model, images, targets)
        start = self._start(images)
        points = (torch.arange(self.steps, dtype=images.dtype, device=images.device) + 0.5) / self.steps
        mean = torch.zeros_like(images)
        for i, at in _jobs(len(images), self.steps, self.at_once, images.device):
            on_path = start[i] + points[at][:, None, None, None] * (images - start)[i]
            mean.index_add_(0, i, pixel_gradients(model, on_path, targets[i])[1] / self.steps)
        maps = patch_sums(model, ((images - start) * mean).sum(1))
        with differentiating(images), torch.no_grad():
            rise = own_logits(model(images), targets) - own_logits(model(start), targets)
        return refuse_non_finite(maps, "the map"), maps.sum((1, 2)) - rise

    def _start(self, images: Tensor) -> Tensor:
        if self.baseline == "zero_norm":
            return torch.zeros_like(images)
        return images.mean((2, 3), keepdim=True).expand_as(images)


@dataclass(frozen=True)
class SmoothGrad(Method):
    """SmoothGrad (Smilkov et al. 2017, arXiv 1706.03825): `sum_c abs(mean gradient over noisy copies)`, over a patch.

    Args:
        samples: Number of copies.
        sigma: Standard deviation of the noise, relative to the range of the image's values.
        seed: Seed of the noise, which belongs to the image's pixels and not to its place in a batch.
        at_once: Images x samples that are differentiated together.
    """

    samples: int = 20
    sigma: float = 0.15
    seed: int = 0
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        """Refuse a mean over nothing."""
        if self.samples < 1 or self.at_once < 1 or self.sigma < 0:
            raise UserError(f"SmoothGrad: samples {self.samples}, at_once {self.at_once}, sigma {self.sigma}")

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        model = admit(model, images, targets)
        mean = torch.zeros_like(images)
        # image by image, for their noise comes one copy after the other: the same however copies are grouped
        for i, generator in enumerate(image_generators(self.seed, images)):
            scale = self.sigma * (images[i].max() - images[i].min())
            for n in _group_sizes(self.samples, self.at_once):
                noise = torch.stack([torch.randn(images[i].shape, generator=generator) for _ in range(n)])
                noisy = images[i] + scale * noise.to(images)
                mean[i] += pixel_gradients(model, noisy, targets[i].repeat(n))[1].sum(0) / self.samples
        return refuse_non_finite(patch_sums(model, mean.abs().sum(1)), "the map")


def pixel_gradients(model: VisionTransformer, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's own logit `(B,)` and its gradient by the pixels `(B, 3, h, w)`."""
    with differentiating(images):
        leaf = outside_inference(images).detach().requires_grad_()
        own = own_logits(model(leaf), outside_inference(targets))
        (gradients,) = torch.autograd.grad(own.sum(), leaf)
    return own.detach(), gradients


def _group_sizes(n: int, at_most: int) -> list[int]:
    return [min(at_most, n - start) for start in range(0, n, at_most)]


def _jobs(n_images: int, n_steps: int, at_once: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return images x steps in full batches: for each, the numbers of the images and of the steps."""
    flat = torch.arange(n_images * n_steps, device=device)
    return [(part // n_steps, part % n_steps) for part in flat.split(at_once)]
