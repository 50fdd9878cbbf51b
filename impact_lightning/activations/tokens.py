"""Which tokens of each image are kept: a pure function of a seed and the row of the image."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer

from impact_lightning.random_bits import random_bits
from impact_lightning.types import UserError

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Sequence:
    """The tokens that a model makes of one image: CLS and registers, if it has them, then the patches."""

    model: str
    length: int  # T
    n_prefix: int
    has_cls: bool

    @classmethod
    def of(cls, name: str, model: VisionTransformer) -> "Sequence":
        """Return the sequence of a model that a person calls `name`."""
        n_prefix = model.num_prefix_tokens
        return cls(name, n_prefix + model.patch_embed.num_patches, n_prefix, model.has_class_token)


@dataclass(frozen=True)
class Tokens:
    """The tokens that are kept of each image.

    Args:
        kind: `all` tokens of the sequence; `cls`, the class token; `patches`, without class token and registers;
            `random`, `n` different tokens of the whole sequence.
        n: Tokens of each image, for `random` alone.
        seed: Seed of the draw; an image keeps the same tokens in every epoch and on any number of ranks.
    """

    kind: Literal["all", "cls", "patches", "random"] = "all"
    n: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if (self.kind == "random") != (self.n is not None):
            raise UserError(f"tokens.n {self.n} and tokens.kind {self.kind}: n belongs to `random`, which needs it")
        if self.n is not None and self.n < 1:
            raise UserError(f"tokens.n must be at least 1, got {self.n}")
        if self.seed < 0:
            raise UserError(f"tokens.seed must not be negative, got {self.seed}")

    def per_image(self, sequence: Sequence) -> int:
        """Return how many tokens of each image are kept, t; refuse a sequence that has not got them."""
        if self.kind == "cls" and not sequence.has_cls:
            raise UserError(f"tokens.kind cls: {sequence.model} has no class token; choose all, patches or random")
        if self.n is not None and self.n > sequence.length:
            raise UserError(f"tokens.n {self.n}: {sequence.model} has only {sequence.length} tokens")
        counts = {"all": sequence.length, "cls": 1, "patches": sequence.length - sequence.n_prefix}
        return self.n or counts[self.kind]

    def of(self, image: Integers, sequence: Sequence) -> Integers:
        """Return the tokens of images `(B,)` in ascending order, `(B, t)`."""
        t = self.per_image(sequence)
        if self.kind != "random":
            first = sequence.n_prefix if self.kind == "patches" else 0
            return np.tile(np.arange(first, first + t), (len(image), 1))
        keys = random_bits(self.seed, image[:, None], np.arange(sequence.length)[None, :])  # (B, T)
        return np.sort(keys.argsort(axis=1)[:, :t], axis=1)  # those with the smallest keys
