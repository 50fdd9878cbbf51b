"""Kurtosis: how heavy the tails of each unit's activations are."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio
from impact_lightning.metrics.unit_bins import checked


class Kurtosis(Metric):
    """Excess kurtosis of each unit over images, `m4 / m2² - 3`: 0 for a normal distribution.

    Args:
        n_units: Number K of units.

    Example:
        >>> metric = Kurtosis(n_units=1)
        >>> metric.update(torch.tensor([[0.0], [0.0], [0.0], [4.0]]))
        >>> round(metric.compute().item(), 4)
        -0.6667
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    moments: Tensor

    def __init__(self, n_units: int) -> None:
        super().__init__()
        moments = torch.zeros(5, n_units, dtype=torch.float64)
        self.add_state("moments", moments, dist_reduce_fx=pool_central_moments)

    def update(self, activations: Tensor) -> None:
        """Add one activation per image and unit `(B, K)`."""
        x = checked(activations, self.moments.shape[1]).double()
        if len(x) == 0:
            return  # the mean of nothing is nan and would stay
        shift = x[0]  # so that a constant unit deviates by zero, and not by rounding errors
        mean = shift + (x - shift).mean(0)
        square = (x - mean) ** 2
        sums = [square.sum(0), (square * (x - mean)).sum(0), (square**2).sum(0)]
        batch = torch.stack([torch.full_like(mean, len(x)), mean, *sums])  # (5, K)
        self.moments = pool_central_moments(torch.stack([self.moments, batch]))

    def compute(self) -> Tensor:
        """Return the excess kurtosis `(K,)` in float64; nan for a constant unit."""
        n, _, second, _, fourth = self.moments  # (K,) each
        return ratio(n * fourth, second**2) - 3

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the kurtosis of units in descending order."""
        import matplotlib.pyplot as plt

        value = self.compute() if val is None else val
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        axes.plot(value[~value.isnan()].sort(descending=True).values.tolist())
        axes.set(xlabel="units, heaviest tails first", ylabel="excess kurtosis")
        return figure, axes


def pool_central_moments(parts: Tensor) -> Tensor:
    """Return count, mean and centred sums of powers 2 to 4 of the union of parts, `(R, 5, K) -> (5, K)`.

    Parts are merged from the first to the last by the update formulas of Pébay (2008), which do not cancel where the
    mean is large.
    """
    pooled = parts[0]
    for part in parts[1:]:
        pooled = _merged(pooled, part)
    return pooled


def _merged(a: Tensor, b: Tensor) -> Tensor:
    (n_a, mean_a, a2, a3, a4), (n_b, mean_b, b2, b3, b4) = a, b  # (K,) each
    n = n_a + n_b
    share_a, share_b = n_a / n.clamp_min(1), n_b / n.clamp_min(1)
    gap = mean_b - mean_a
    weight = n_a * share_b  # n_a n_b / n
    second = a2 + b2 + gap**2 * weight
    third = a3 + b3 + gap**3 * weight * (share_a - share_b) + 3 * gap * (share_a * b2 - share_b * a2)
    fourth = (
        a4
        + b4
        + gap**4 * weight * (share_a**2 - share_a * share_b + share_b**2)
        + 6 * gap**2 * (share_a**2 * b2 + share_b**2 * a2)
        + 4 * gap * (share_a * b3 - share_b * a3)
    )
    return torch.stack([n, mean_a + gap * share_b, second, third, fourth])
