"""Substrates: what takes the place of pixels that are removed."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impact_lightning.random_bits import random_bits
from impact_lightning.types import UserError


class Pixels(NamedTuple):
    """How a model's images were normalised: `(pixel - mean) / std`, pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Pixels":
        """Return the constants that timm keeps with a model."""
        config = getattr(model, "pretrained_cfg", None) or {}
        if "mean" not in config or "std" not in config:
            raise UserError(f"{type(model).__name__} does not say how its images are normalised: pass `pixels`")
        return cls(tuple(config["mean"]), tuple(config["std"]))

    def black(self, like: Tensor) -> Tensor:
        """Return what a black pixel is after normalisation `(C, 1, 1)`."""
        values = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


class Substrate(ABC):
    """What takes the place of normalised images: a frozen dataclass, whose fields are part of results.

    It is one for all images where it `is_shared`.
    """

    is_shared: ClassVar[bool]

    @abstractmethod
    def __call__(self, images: Tensor, pixels: Pixels | None, rows: Tensor) -> Tensor:
        """Return the images with everything removed `(B or 1, C, h, w)`."""


@dataclass(frozen=True)
class ZeroNorm(Substrate):
    """Zero after normalisation: the mean grey of the data."""

    is_shared: ClassVar[bool] = True

    def __call__(self, images: Tensor, pixels: Pixels | None, rows: Tensor) -> Tensor:
        """Return it `(1, C, h, w)`."""
        return torch.zeros_like(images[:1])


@dataclass(frozen=True)
class Black(Substrate):
    """Zero before normalisation."""

    is_shared: ClassVar[bool] = True

    def __call__(self, images: Tensor, pixels: Pixels | None, rows: Tensor) -> Tensor:
        """Return it `(1, C, h, w)`."""
        if pixels is None or len(pixels.mean) != images.shape[1]:
            raise UserError(f"black needs `pixels`: the mean and std of {images.shape[1]} channels")
        return pixels.black(images).expand_as(images[:1])


@dataclass(frozen=True)
class Mean(Substrate):
    """The mean colour of each image."""

    is_shared: ClassVar[bool] = False

    def __call__(self, images: Tensor, pixels: Pixels | None, rows: Tensor) -> Tensor:
        """Return them `(B, C, h, w)`."""
        return images.mean((2, 3), keepdim=True).expand_as(images)


@dataclass(frozen=True)
class Min(Substrate):
    """The smallest number of each image, in all channels."""

    is_shared: ClassVar[bool] = False

    def __call__(self, images: Tensor, pixels: Pixels | None, rows: Tensor) -> Tensor:
        """Return them `(B, C, h, w)`."""
        return images.amin((1, 2, 3), keepdim=True).expand_as(images)


@dataclass(frozen=True)
class BlurRise(Substrate):
    """The blur of RISE: a Gaussian-filtered impulse as kernel, zeros around the normalised image.

    Args:
        length: Taps of the kernel, an odd number.
        sigma: Of the Gaussian, in pixels; with 5 on 11 taps, reflected at their ends, it is nearly a box.
    """

    length: int = 11
    sigma: float = 5.0
    is_shared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse a kernel without a centre."""
        if self.length < 1 or self.length % 2 == 0 or not self.sigma > 0:
            raise UserError(f"a blur needs an odd length and a positive sigma, got {self.length} and {self.sigma}")

    def __call__(self, images: Tensor, pixels: Pixels | None, rows: Tensor) -> Tensor:
        """Return them `(B, C, h, w)`."""
        return _separable(F.pad(images, (self.length // 2,) * 4), reflected_gaussian(self.length, self.sigma))


@dataclass(frozen=True)
class BlurGauss(Substrate):
    """A Gaussian blur, cut at four sigma; border pixels go on beyond the border.

    Args:
        sigma: In pixels.
    """

    sigma: float
    is_shared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse no width."""
        if not 0 < self.sigma < math.inf:
            raise UserError(f"a blur needs a positive sigma, got {self.sigma}")

    def __call__(self, images: Tensor, pixels: Pixels | None, rows: Tensor) -> Tensor:
        """Return them `(B, C, h, w)`."""
        taps = gaussian(self.sigma)
        return _separable(F.pad(images, (len(taps) // 2,) * 4, mode="replicate"), taps)


@dataclass(frozen=True)
class Noise(Substrate):
    """Normal noise around zero after normalisation, a pure function of the seed and the number of an image.

    Args:
        std: Its standard deviation.
        seed: Its seed.
    """

    std: float = 1.0
    seed: int = 0
    is_shared: ClassVar[bool] = False

    def __call__(self, images: Tensor, pixels: Pixels | None, rows: Tensor) -> Tensor:
        """Return them `(B, C, h, w)`."""
        return self.std * normal(self.seed, images, rows)


@dataclass(frozen=True)
class Drop:
    """Patch tokens are taken out of the sequence. A measure of its own, never beside substrates that fill."""

    is_shared: ClassVar[bool] = True


def normal(seed: int, like: Tensor, *ids: Tensor) -> Tensor:
    """Return normal noise like images `(B, C, h, w)`, each a pure function of the seed and its ids `(B,)`."""
    seeds = random_bits(seed, *(part.cpu().numpy() for part in ids)).astype(np.int64).tolist()
    drawn = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(bits)) for bits in seeds]
    return torch.stack(drawn).to(like)


def gaussian(sigma: float) -> Tensor:
    """Return the taps of a Gaussian cut at four sigma, float64, an odd number."""
    radius = int(4 * sigma + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return taps / taps.sum()


def reflected_gaussian(length: int, sigma: float) -> Tensor:
    """Return the taps of an impulse in the middle of `length` places after a Gaussian filter, reflecting at both ends.

    Example:
        >>> [round(tap, 6) for tap in reflected_gaussian(11, 5.0)[5:].tolist()]
        [0.093982, 0.093489, 0.092191, 0.090474, 0.088896, 0.087958]
    """
    weights = gaussian(sigma)
    radius = len(weights) // 2
    reads = torch.arange(length)[:, None] + torch.arange(-radius, radius + 1)  # (length, taps), places that are read
    period = reads.remainder(2 * length)  # a b c | c b a | a b c ...
    place = torch.where(period < length, period, 2 * length - 1 - period)
    return ((place == length // 2) * weights).sum(1)


def _separable(padded: Tensor, taps: Tensor) -> Tensor:
    planes = padded.flatten(0, 1)[:, None]  # (B, C, h, w) -> (B * C, 1, h, w)
    taps = taps.to(padded)
    blurred = F.conv2d(F.conv2d(planes, taps[None, None, :, None]), taps[None, None, None, :])
    return blurred.view(*padded.shape[:2], *blurred.shape[2:])
