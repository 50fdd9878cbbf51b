"""Comprehensiveness and sufficiency (ERASER): what is lost without the most relevant part, and with it alone."""

import torch
from torch import Tensor

from impact_lightning.metrics.curves import Curves
from impact_lightning.types import UserError

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)


def comprehensiveness(morf: Curves) -> Tensor:
    """Return the mean drop of the score without the most relevant 1, 5, 10, 20 and 50 % of the units `(B,)`."""
    return _mean_drop(morf)


def sufficiency(insertion: Curves) -> Tensor:
    """Return the mean drop of the score with only the most relevant 1, 5, 10, 20 and 50 % of the units `(B,)`.

    Less is better. The rest is what the curve starts from.
    """
    return _mean_drop(insertion)


def _mean_drop(curves: Curves) -> Tensor:
    at = torch.tensor(SHARES, dtype=torch.float64, device=curves.values.device)
    return (curves.clean[:, None] - value_at(curves, at)).mean(1)


def value_at(curves: Curves, shares: Tensor) -> Tensor:
    """Return the scores where these shares `(m,)` of the units have changed `(B, m)`, linear between points.

    Example:
        >>> z = torch.zeros(1)
        >>> curve = Curves(torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([0.0, 0.25, 1.0]), z, z, z, z, z, {})
        >>> value_at(curve, torch.tensor([0.125, 0.25])).tolist()
        [[0.75, 0.5]]
    """
    x, y = curves.fractions.to(curves.values), curves.values
    shares = shares.to(x)
    if x[0] > shares.min() or x[-1] < shares.max():
        raise UserError(f"the curve goes from {x[0]:g} to {x[-1]:g} and has no value at {shares.min():g}")
    above = torch.searchsorted(x, shares).clamp_min(1)  # (m,)
    share = (shares - x[above - 1]) / (x[above] - x[above - 1])
    return y[:, above - 1] + share * (y[:, above] - y[:, above - 1])
