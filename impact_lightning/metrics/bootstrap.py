"""Bootstrap: how far a number would move with other images, from one pass and without keeping any of them."""

from math import exp, factorial

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from impact_lightning.random_bits import random_bits
from impact_lightning.results import Interval

POISSON = np.cumsum([exp(-1) / factorial(n) for n in range(20)])  # P(count <= n) of a Poisson variable of mean 1


class BootstrapSums(Metric):
    """Totals of quantities over images, and the same totals in draws of as many images with replacement.

    How often draw r holds an image is a Poisson variable of mean 1, which is what drawing with replacement comes to
    among many images, and a pure function of seed, draw and image: the totals are the same in any order of the images
    and on any number of ranks. Any function of totals has its interval from the draws.

    Args:
        width: Number S of quantities.
        draws: Number R of draws.
        seed: Seed of the draws.

    Example:
        >>> metric = BootstrapSums(1, draws=2)
        >>> metric.update(torch.tensor([[1.0], [2.0]]), torch.tensor([5, 8]))
        >>> metric.compute()[0].item(), metric.compute().shape
        (3.0, torch.Size([3, 1]))
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sums: Tensor
    unlike: Tensor

    def __init__(self, width: int, *, draws: int = 200, seed: int = 0) -> None:
        super().__init__()
        self.draws = draws
        self.seed = seed
        self.add_state("sums", torch.zeros(1 + draws, width, dtype=torch.float64), dist_reduce_fx="sum")
        # a MetricCollection merges metrics whose states are equal after a batch, whatever they read: nan equals nothing
        self.add_state("unlike", torch.tensor(torch.nan), dist_reduce_fx="sum")

    def update(self, quantities: Tensor, images: Tensor) -> None:
        """Add quantities `(B, S)` of images with these numbers `(B,)`."""
        self.sums += self._counts(images) @ quantities.double()

    def _counts(self, images: Tensor) -> Tensor:
        """Return how often the data, and each draw, hold each image, `(1 + R, B)`."""
        return image_draws(images, draws=self.draws, seed=self.seed).to(self.sums)

    def compute(self) -> Tensor:
        """Return the totals of the data and of each draw, `(1 + R, S)` float64."""
        return self.sums


def image_draws(images: Tensor, *, draws: int, seed: int) -> Tensor:
    """Return how often the data, and each draw, hold each image, `(B,) -> (1 + R, B)` float64."""
    bits = random_bits(seed, np.arange(draws)[:, None], images.cpu().numpy()[None])  # (R, B)
    drawn = np.searchsorted(POISSON, bits / 2.0**64, side="right")
    return torch.from_numpy(np.vstack([np.ones((1, len(images))), drawn]))


def interval_of_draws(values: Tensor, level: float = 0.95) -> Interval:
    """Return the percentile interval of a number in each draw, `(1 + R,)`, of which the first is the data's own.

    Draws in which the number is undefined are left out.
    """
    return _percentiles(values[1:], f"bootstrap over images, {len(values) - 1} draws", level)


def interval_of_mean(values: Tensor, *, what: str, draws: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Return the percentile interval of the mean of values `(n,)` that are drawn with replacement.

    Args:
        values: The values.
        what: What they are of, in the plural.
        draws: Number of draws.
        seed: Seed of the draws.
        level: Level of the interval.
    """
    generator = torch.Generator().manual_seed(seed)
    values = values.double().cpu()
    means = torch.stack(
        [values[torch.randint(len(values), (len(values),), generator=generator)].mean() for _ in range(draws)]
    )
    return _percentiles(means, f"bootstrap over {what}, {draws} draws, seed {seed}", level)


def class_draws(n_classes: int, *, draws: int = 1000, seed: int = 0) -> Tensor:
    """Return how often each draw of as many classes, with replacement, holds each class, `(R, C)` float64.

    What is measured on the same classes, in the same draws, is compared in pairs.
    """
    drawn = torch.randint(n_classes, (draws, n_classes), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(draws, n_classes, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones_like(drawn, dtype=torch.float64)
    )


def interval_over_classes(values: Tensor, *, seed: int = 0, level: float = 0.95) -> Interval:
    """Return the percentile interval of a number in each of the draws of `class_draws`, `(R,)`."""
    return _percentiles(values, f"bootstrap over classes, {len(values)} draws, seed {seed}", level)


def _percentiles(values: Tensor, how: str, level: float) -> Interval:
    tail = (1 - level) / 2
    low, high = torch.nanquantile(values.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(low, high, how, level)
