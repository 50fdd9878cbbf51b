"""Scaling of activations before a dictionary sees them, so that learning rates and penalties mean the same."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from impact_lightning.activations.batch import SiteStatistics
from impact_lightning.types import UserError

ScalingMode = Literal["mean_norm", "unit_msq", "layer_norm", "none"]

EPSILON = 1e-5  # added to the standard deviation of a token, as SAELens does


class Scaling(nn.Module):
    """`x' = s (x − μ)`, which folds away on export, or the standardisation of each token by itself.

    Args:
        width: Channels D of the site.
        mode: `mean_norm` takes the mean off and makes `E‖x'‖ = √D`; `unit_msq` makes `E‖x'‖² = 1`; `layer_norm`
            standardises each token and cannot be folded into weights; `none` leaves activations alone.
    """

    mean: Tensor  # (D,) μ of the site, also where it is not taken off
    scale: Tensor  # () s

    def __init__(self, width: int, mode: ScalingMode = "mean_norm") -> None:
        super().__init__()
        self.mode = mode
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, statistics: SiteStatistics, sample: Tensor) -> None:
        """Take over what is known of a site; one whose rows are all the same keeps its scale.

        Args:
            statistics: Mean and norm of the site.
            sample: Some of its rows `(N, D)`, the same on every rank.
        """
        self.mean.copy_(statistics.mean)
        if self.mode == "mean_norm":
            self._set_scale(math.sqrt(len(self.mean)), statistics.norm)
        elif self.mode == "unit_msq":
            self._set_scale(1.0, math.sqrt(float(sample.double().square().sum(1).mean())))

    def _set_scale(self, wanted: float, size: float) -> None:
        if not math.isfinite(size):
            raise UserError(f"the activations have the mean length {size}, which no scale mends; look at their source")
        self.scale.fill_(wanted / size if size > 0 else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return scaled rows `(..., D)`."""
        mean, scale = self._of(x)
        return (x - mean) * scale

    def undo(self, y: Tensor, x: Tensor) -> Tensor:
        """Return `y` in the units of the raw activations `x` that it reconstructs, both `(..., D)`."""
        mean, scale = self._of(x)
        return y / scale + mean

    def _of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.mode != "layer_norm":
            return self.mean if self.mode == "mean_norm" else torch.zeros_like(self.mean), self.scale
        return x.mean(-1, keepdim=True), 1 / (x.std(-1, keepdim=True) + EPSILON)
