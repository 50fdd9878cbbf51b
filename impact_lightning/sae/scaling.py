"""Input scaling: rows of every site get the mean zero and the norm √D, so that learning rates mean the same."""

import math

import torch
from torch import Tensor, nn


class Scaling(nn.Module):
    """`x' = s (x − μ)` with `s = √D / E‖x − μ‖`; it folds away on export.

    Args:
        width: Channels of the site.
    """

    mean: Tensor  # (D,)
    scale: Tensor  # ()

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, mean: Tensor, norm: float) -> None:
        """Take over the statistics of a site; one whose rows are all the same keeps its scale."""
        self.mean.copy_(mean)
        self.scale.fill_(math.sqrt(len(mean)) / norm if norm > 0 else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return scaled rows `(B, D)`."""
        return (x - self.mean) * self.scale

    def undo(self, x: Tensor) -> Tensor:
        """Return rows `(B, D)` as the site has them."""
        return x / self.scale + self.mean
