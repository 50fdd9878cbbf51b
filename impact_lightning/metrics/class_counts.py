"""Class counts: on how many images of each class a latent fires."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE


class Counts(NamedTuple):
    """How often latents fire, int64."""

    fired: Tensor  # (F, C) images of a class on which a latent fires
    images: Tensor  # (C,) images of a class


class ClassCounts(Metric):
    """Images of each class on which each latent fires, on any of their tokens.

    Args:
        n_latents: Number F of latents.
        n_classes: Number C of classes.

    Example:
        >>> metric = ClassCounts(n_latents=1, n_classes=2)
        >>> metric.update(torch.tensor([[3.0], [0.0], [1.0]]), torch.tensor([0, 0, 1]))
        >>> metric.compute().fired.tolist(), metric.compute().images.tolist()
        ([[1, 1]], [2, 1])
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    fired: Tensor
    images: Tensor

    def __init__(self, n_latents: int, n_classes: int) -> None:
        super().__init__()
        self.add_state("fired", torch.zeros(n_latents, n_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(n_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, peaks: Tensor, labels: Tensor) -> None:
        """Add the largest activation of each latent on each image `(B, F)`, and the images' labels `(B,)`."""
        self.fired.index_add_(1, labels, (peaks > 0).T.long())
        self.images += torch.bincount(labels, minlength=len(self.images))

    def compute(self) -> Counts:
        """Return the counts."""
        return Counts(self.fired, self.images)

    def plot(self, val: Counts | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot how many classes the latents fire on."""
        import matplotlib.pyplot as plt

        counts = (self.compute() if val is None else val).fired
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        axes.stairs(torch.bincount((counts > 0).sum(1)).tolist(), fill=True)
        axes.set(xlabel="classes on which a latent fires", ylabel="latents")
        return figure, axes
