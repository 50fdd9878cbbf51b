"""Density: how often each latent fires."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio

DECADES, BINS_PER_DECADE = 8, 10


class Densities(NamedTuple):
    """Firing densities, in float64; fractions are of all latents, and mean little without `n`."""

    density: Tensor  # (F,) share of tokens on which a latent fires
    histogram: Tensor  # (80,) int64, latents that fired by log10 density, tenths of a decade from -8 to 0
    dead: Tensor  # () fraction that never fired in n tokens
    ultra_low: Tensor  # () fraction that fired, on less than the limit's share of tokens
    above_1_percent: Tensor  # () fraction that fires on more than 1 % of tokens
    above_10_percent: Tensor  # () fraction that fires on more than 10 % of tokens
    n: Tensor  # () int64, tokens


class FiringDensity(Metric):
    """Share of tokens on which each latent is not zero.

    A latent is dead where it fired on none of the n tokens seen: with other n, another number. Ultra-low latents fired
    at least once; among fewer than `1 / ultra_low` tokens there can be none.

    Args:
        n_latents: Number F of latents.
        ultra_low: Density under which a latent that fires counts as ultra-low.

    Example:
        >>> metric = FiringDensity(2)
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> result = metric.compute()
        >>> result.density.tolist(), result.dead.item(), result.n.item()
        ([0.0, 0.5], 0.5, 2)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    fired: Tensor
    tokens: Tensor

    def __init__(self, n_latents: int, *, ultra_low: float = 1e-5) -> None:
        super().__init__()
        self.ultra_low = ultra_low
        self.add_state("fired", torch.zeros(n_latents, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Add the codes `(..., F)` of one batch."""
        codes = codes.flatten(0, -2)  # (..., F) -> (N, F)
        self.fired += torch.count_nonzero(codes, dim=0)
        self.tokens += len(codes)

    def compute(self) -> Densities:
        """Return the densities and their summary; nan before any token."""
        density = ratio(self.fired, self.tokens)
        return Densities(
            density=density,
            histogram=log_histogram(density),
            dead=self._fraction(self.fired == 0),
            ultra_low=self._fraction((self.fired > 0) & (density < self.ultra_low)),
            above_1_percent=self._fraction(density > 0.01),
            above_10_percent=self._fraction(density > 0.1),
            n=self.tokens,
        )

    def _fraction(self, which: Tensor) -> Tensor:
        return torch.where(self.tokens > 0, which.double().mean(), torch.nan)

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the histogram of log10 densities `(80,)`."""
        import matplotlib.pyplot as plt

        histogram = self.compute().histogram if val is None else val
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        axes.stairs(histogram.tolist(), torch.linspace(-DECADES, 0, len(histogram) + 1).tolist(), fill=True)
        axes.set(xlabel="log10 density", ylabel="latents")
        return figure, axes


def log_histogram(density: Tensor) -> Tensor:
    """Return the number of densities `(F,)` in each tenth of a decade, `(80,)`; rarer ones fall in the first."""
    alive = density[density > 0]
    bins = ((alive.log10() + DECADES) * BINS_PER_DECADE).floor().long()
    n_bins = DECADES * BINS_PER_DECADE
    return torch.bincount(bins.clamp(0, n_bins - 1), minlength=n_bins)
