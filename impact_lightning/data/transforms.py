"""From a decoded picture to the pixels a model sees, as bytes; normalisation happens later, on the device."""

import difflib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import timm
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose

from impact_lightning.types import Key, UserError

Pixels = NDArray[np.uint8]
Transform = Callable[[Image.Image, Key], Pixels]  # an RGB picture -> (3, h, w)


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its images at evaluation.

    Args:
        of: Name of a timm model whose own transform is used; none means 224 pixels and the statistics of ImageNet.
        size: Side of the square image, in place of the model's.
        mean: Mean of each channel, pixels in [0, 1], in place of the model's.
        std: Standard deviation of each channel, in place of the model's.
        interpolation: How images are resized, in place of the model's.
        crop_pct: Share of the resized side that the central crop keeps, in place of the model's.
    """

    of: str | None = None
    size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = None
    crop_pct: float | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that no image has."""
        if self.size is not None and self.size < 1:
            raise UserError(f"data.preprocess.size must be at least 1, got {self.size}")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise UserError(f"data.preprocess.crop_pct must lie in (0, 1], got {self.crop_pct}")

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """Return every constant: input_size, interpolation, mean, std, crop_pct and crop_mode."""
        overrides = {name: value for name, value in asdict(self).items() if name not in ("of", "size")}
        side = None if self.size is None else (3, self.size, self.size)
        model = {} if self.of is None else pretrained_cfg(self.of)
        return resolve_data_config({**overrides, "input_size": side}, pretrained_cfg=model)  # type: ignore[no-any-return]


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return what timm knows about a model's images, or name the models that are spelt alike."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known, wrong = timm.list_models(), architecture
    elif name != architecture and name not in timm.list_pretrained(f"{architecture}.*"):
        known, wrong = timm.list_pretrained(f"{architecture}.*"), name
    else:
        return timm.get_pretrained_cfg(name, allow_unregistered=False).to_dict()  # type: ignore[no-any-return, union-attr]
    alike = difflib.get_close_matches(wrong, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(alike)}?" if alike else "set size, mean and std instead"
    raise UserError(f"data.preprocess.of: timm has no model {name}; {hint}")


class EvalTransform:
    """timm's transform for evaluation, up to the point where pixels become floats."""

    def __init__(self, preprocess: Preprocess) -> None:
        constants = preprocess.resolved
        self.size: tuple[int, int] = constants["input_size"][-2:]
        self.geometry = _without_tensor(create_transform(**constants, is_training=False, normalize=False))
        self.is_identity_at_size = all(math.floor(side / constants["crop_pct"]) == side for side in self.size)

    def __call__(self, image: Image.Image, key: Key) -> Pixels:
        """Return the pixels `(3, h, w)`; an image that fits as it is, is not resized."""
        if not (self.is_identity_at_size and image.size == self.size[::-1]):
            image = self.geometry(image)
        return pixels(image)


class Augment(ABC):
    """How training images are varied: a pure function of seed, epoch and sample."""

    @abstractmethod
    def transform(self, preprocess: Preprocess, seed: int) -> Transform:
        """Return the transform of training images."""


@dataclass(frozen=True)
class FlipCrop(Augment):
    """Mirror every other image and shift it inside a black border: for small images.

    Args:
        pad: Largest shift, in pixels.
    """

    pad: int = 4

    def __post_init__(self) -> None:
        """Refuse a negative shift."""
        if self.pad < 0:
            raise UserError(f"data.augment.pad must not be negative, got {self.pad}")

    def transform(self, preprocess: Preprocess, seed: int) -> Transform:
        """Return the transform for evaluation, then a flip and a shift."""
        evaluate = EvalTransform(preprocess)

        def flip_and_crop(image: Image.Image, key: Key) -> Pixels:
            shifts, mirrored = divmod(random_bits(seed, key), 2)
            top, left = divmod(shifts % (2 * self.pad + 1) ** 2, 2 * self.pad + 1)
            x = evaluate(image, key)
            _, h, w = x.shape
            framed = np.zeros((3, h + 2 * self.pad, w + 2 * self.pad), np.uint8)
            framed[:, self.pad : self.pad + h, self.pad : self.pad + w] = x
            x = framed[:, top : top + h, left : left + w]  # (3, h + 2 pad, w + 2 pad) -> (3, h, w)
            return x[:, :, ::-1] if mirrored else x

        return flip_and_crop


@dataclass(frozen=True)
class RandomResizedCrop(Augment):
    """timm's training transform: a random crop of random size, a flip, and optionally more.

    Args:
        scale: Least and largest share of the image's area that a crop covers.
        auto_augment: A policy in timm's spelling, such as `rand-m9-mstd0.5-inc1`, `3a` or `augmix-m3`.
        color_jitter: Strength of random brightness, contrast and saturation; timm leaves it out under most policies.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    auto_augment: str | None = None
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares that no crop has, and policies that timm does not know."""
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"data.augment.scale must rise within (0, 1], got {self.scale}")
        try:
            create_transform(224, is_training=True, auto_augment=self.auto_augment)
        except (AssertionError, ValueError, KeyError) as error:
            raise UserError(f"data.augment.auto_augment: timm has no policy {self.auto_augment} ({error})") from error

    def transform(self, preprocess: Preprocess, seed: int) -> Transform:
        """Return timm's transform, whose random numbers are seeded for each sample."""
        constants = preprocess.resolved
        geometry = _without_tensor(
            create_transform(
                input_size=constants["input_size"],
                is_training=True,
                scale=self.scale,
                color_jitter=self.color_jitter,
                auto_augment=self.auto_augment,
                interpolation=constants["interpolation"],
                mean=constants["mean"],
                normalize=False,
            )
        )

        def crop(image: Image.Image, key: Key) -> Pixels:
            bits = random_bits(seed, key)
            with isolate_rng(include_cuda=False):  # without workers this is the training process
                random.seed(bits)
                np.random.seed(bits % 2**32)
                torch.default_generator.manual_seed(bits % 2**63)  # torch.manual_seed would seed the accelerators too
                return pixels(geometry(image))

        return crop


def random_bits(seed: int, key: Key) -> int:
    """Return 64 random bits of a sample in an epoch: a counter-based generator needs no state."""
    return int(np.random.Philox(key=[seed, key.epoch], counter=[key.row, 0, 0, 0]).random_raw())


def pixels(image: Image.Image) -> Pixels:
    """Return the bytes of an RGB image, `(3, h, w)`."""
    return np.asarray(image).transpose(2, 0, 1)  # (h, w, 3) -> (3, h, w)


def _without_tensor(transform: Compose) -> Compose:
    """Leave out timm's last step, the tensor: the batch is filled from the bytes of the image."""
    return Compose(transform.transforms[:-1])
