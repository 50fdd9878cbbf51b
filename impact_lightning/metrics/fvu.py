"""FVU: the share of the variance that a reconstruction leaves unexplained."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio


class FVU(Metric):
    """Pooled fraction of variance unexplained, `sum |x - x̂|² / sum |x - μ|²`, with μ the mean of all tokens.

    Numerator and denominator are totals over all batches and ranks; the ratio is formed once. Explained variance `ev`
    is `1 - fvu`; `nmse_origin`, `sum |x - x̂|² / sum |x|²`, is another number and much smaller where μ is large.

    Args:
        width: Width D of the activations.

    Example:
        >>> metric = FVU(1)
        >>> metric.update(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'fvu': 0.5, 'ev': 0.5, 'nmse_origin': 0.1, 'n': 2}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    moments: Tensor
    error: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.add_state("moments", torch.zeros(3, width, dtype=torch.float64), dist_reduce_fx=pool_moments)
        self.add_state("error", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, reconstruction: Tensor) -> None:
        """Add activations `(..., D)` and their reconstructions `(..., D)`."""
        assert x.shape == reconstruction.shape, f"{tuple(x.shape)} is not {tuple(reconstruction.shape)}"
        x, reconstruction = x.flatten(0, -2).double(), reconstruction.flatten(0, -2).double()  # (..., D) -> (N, D)
        if len(x) == 0:
            return  # the mean of nothing is nan and would stay
        mean = x.mean(0)
        batch = torch.stack([torch.full_like(mean, len(x)), mean, ((x - mean) ** 2).sum(0)])  # (3, D)
        self.moments = pool_moments(torch.stack([self.moments, batch]))
        self.error += ((x - reconstruction) ** 2).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return `fvu`, `ev` and `nmse_origin` in float64 (nan where undefined), and the number of tokens `n`."""
        n, mean, squares = self.moments  # (D,) each
        variance = squares.sum()
        fvu = ratio(self.error, variance)
        nmse_origin = ratio(self.error, variance + (n * mean**2).sum())
        return {"fvu": fvu, "ev": 1 - fvu, "nmse_origin": nmse_origin, "n": n[0].long()}

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the FVU, or values of it that were kept."""
        return self._plot(self.compute()["fvu"] if val is None else val, ax)


def pool_moments(parts: Tensor) -> Tensor:
    """Return count, mean and centred sum of squares of the union of parts, `(R, 3, D) -> (3, D)`.

    Moments about each part's own mean (Chan et al. 1979): `E[x²] - E[x]²` would cancel where the mean is large.
    """
    n, mean, squares = parts.unbind(1)  # (R, D) each
    total = n.sum(0)
    pooled = (n * mean).sum(0) / total.clamp_min(1)
    return torch.stack([total, pooled, squares.sum(0) + (n * (mean - pooled) ** 2).sum(0)])
