"""Normalisation of activations before a dictionary sees them, so that learning rates and penalties mean the same."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from impact_lightning.ranks import all_sum
from impact_lightning.types import UserError

Mode = Literal["none", "mean_norm", "unit_msq", "layer_norm"]

EPSILON = 1e-5  # added to the standard deviation of a token, as SAELens does


class Normalise(nn.Module):
    """`x' = s (x − μ)`, or the standardisation of each token by itself.

    Args:
        width: Channels of the activations.
        mode: `mean_norm` takes the mean off and makes `E‖x'‖ = √D`; `unit_msq` makes `E‖x'‖² = 1`; `layer_norm`
            standardises each token and cannot be folded into weights; `none` leaves activations alone.
    """

    mean: Tensor  # (D,) μ
    scale: Tensor  # () s

    def __init__(self, width: int, mode: Mode = "mean_norm") -> None:
        super().__init__()
        self.mode = mode
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Take μ and s from a sample `(N, D)`, of which each rank has a part."""
        x = x.double()
        n_tokens = all_sum(torch.tensor(float(len(x)), dtype=torch.float64, device=x.device))
        if not n_tokens:
            raise UserError("normalisation: the sample to take the scale from is empty")
        if self.mode == "mean_norm":
            self.mean.copy_(all_sum(x.sum(0)) / n_tokens)
            size = float(all_sum((x - self.mean).norm(dim=1).sum()) / n_tokens)
            self._set_scale(math.sqrt(x.shape[1]), size)
        elif self.mode == "unit_msq":
            self._set_scale(1.0, math.sqrt(float(all_sum(x.square().sum()) / n_tokens)))

    def _set_scale(self, wanted: float, size: float) -> None:
        if not 0 < size < math.inf:
            raise UserError(f"normalisation: the sample has the mean length {size}, which no scale mends")
        self.scale.fill_(wanted / size)

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised activations, `(..., D)`."""
        mean, scale = self._of(x)
        return (x - mean) * scale

    def undo(self, y: Tensor, x: Tensor) -> Tensor:
        """Return `y` in the units of the raw activations `x` that it reconstructs, both `(..., D)`."""
        mean, scale = self._of(x)
        return y / scale + mean

    def constants(self) -> tuple[float, Tensor]:
        """Return s and μ, which fold into weights."""
        if self.mode == "layer_norm":
            raise UserError("normalisation: layer_norm depends on the token and cannot be folded into weights")
        return float(self.scale), self.mean

    def _of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.mode != "layer_norm":
            return self.mean, self.scale
        return x.mean(-1, keepdim=True), 1 / (x.std(-1, keepdim=True) + EPSILON)
