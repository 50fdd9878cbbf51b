"""Relative reconstruction bias: whether reconstructions are too short or too long."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio


class ReconstructionBias(Metric):
    """Relative reconstruction bias `E|x̂|² / E[x·x̂]`: below 1 reconstructions shrink, above 1 they overshoot.

    It is the inverse of the factor by which reconstructions would have to be scaled to have the least squared error.
    `norm_ratio` is `E|x̂| / E|x|`, which falls with every error, also with an unbiased one.

    Example:
        >>> metric = ReconstructionBias()
        >>> metric.update(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'bias': 0.5, 'norm_ratio': 0.5, 'n': 1}
    """

    is_differentiable = False
    higher_is_better = None  # 1 is best
    full_state_update = False

    energy: Tensor
    product: Tensor
    reconstruction_norm: Tensor
    norm: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("energy", "product", "reconstruction_norm", "norm"):
            self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, x: Tensor, reconstruction: Tensor) -> None:
        """Add activations `(..., D)` and their reconstructions `(..., D)`."""
        assert x.shape == reconstruction.shape, f"{tuple(x.shape)} is not {tuple(reconstruction.shape)}"
        x, reconstruction = x.flatten(0, -2).double(), reconstruction.flatten(0, -2).double()  # (..., D) -> (N, D)
        self.energy += (reconstruction**2).sum()
        self.product += (x * reconstruction).sum()
        self.reconstruction_norm += reconstruction.norm(dim=1).sum()
        self.norm += x.norm(dim=1).sum()
        self.tokens += len(x)

    def compute(self) -> dict[str, Tensor]:
        """Return `bias` and `norm_ratio` in float64 (nan where undefined), and the number of tokens `n`."""
        return {
            "bias": ratio(self.energy, self.product),
            "norm_ratio": ratio(self.reconstruction_norm, self.norm),
            "n": self.tokens,
        }

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the bias, or values of it that were kept."""
        return self._plot(self.compute()["bias"] if val is None else val, ax)
