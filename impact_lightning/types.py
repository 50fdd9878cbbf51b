"""The nouns that packages share."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]


class ImageBatch(NamedTuple):
    """Images and everything that is known about them."""

    images: Tensor  # (B, 3 or 1, h, w): uint8 out of a loader, normalised float32 inside a LightningModule
    labels: Tensor  # (B,) int64
    row: Tensor  # (B,) int64, position of the sample in its data set: the same on any number of ranks
    factors: Tensor | None = None  # (B, n_factors) int64, only where the scene is known
    masks: Tensor | None = None  # (B, h, w) bool, pixels of the object


class Key(NamedTuple):
    """What a data set is asked for: a sample, in a given epoch (so that augmentation is a pure function of both)."""

    epoch: int
    row: int


class UserError(ValueError):
    """Something that the user can mend: the message names the file, key or value, and what to do.

    The command line prints it without a traceback and ends with exit code 2.
    """
