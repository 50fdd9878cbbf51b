"""Areas of curves, each under the convention of its protocol."""

import torch
from torch import Tensor

from impact_lightning.metrics.curves import Curves, check_pair
from impact_lightning.types import UserError

MARGIN = 0.01  # by which an image must score above where insertion starts


def area(curves: Curves) -> Tensor:
    """Return the area under each curve `(B,)`, by the convention that its protocol names."""
    kind = curves.protocol["area"]
    if kind == "rise":
        return rise_area(curves.values)
    if kind == "chefer":
        return chefer_area(curves.values)
    if kind == "trapezoid":
        return torch.trapezoid(curves.values, curves.fractions.to(curves.values))
    if kind == "mean":
        return curves.values.mean(1)
    raise UserError(f"curves of the protocol {curves.protocol['name']!r} have no area")


def rise_area(values: Tensor) -> Tensor:
    """Return `(Σ y - y_0/2 - y_S/2) / S` of curves `(B, S + 1)`: in [0, 1], as if the last step were as long as others.

    Example:
        >>> rise_area(torch.tensor([[1.0, 0.5, 0.0]])).item()
        0.5
    """
    return (values.sum(1) - (values[:, 0] + values[:, -1]) / 2) / (values.shape[1] - 1)


def chefer_area(values: Tensor) -> Tensor:
    """Return 100 times the area over 0, 0.1, ... 0.9 of ten points `(B, 10)`: in [0, 90].

    Example:
        >>> chefer_area(torch.ones(1, 10)).item()
        90.0
    """
    if values.shape[1] != 10:
        raise ValueError(f"the area over 0 to 90 % is of ten points, got {values.shape[1]}")
    return 10 * (values.sum(1) - (values[:, 0] + values[:, -1]) / 2)


def normalised_area(insertion: Curves) -> Tensor:
    """Return the area of insertion, 0 being where it starts and 1 the image itself `(B,)`.

    A model that stays confident under its start, such as a blur, has little left to insert: nan where the image is not
    above its start by more than 0.01, of probability or of logits. A smaller range would multiply what happens on the
    way by more than a hundred, so that few images make the mean, and a negative one would turn its sign.
    """
    start = insertion.values[:, :1]
    gain = insertion.clean[:, None] - start
    return area(insertion._replace(values=((insertion.values - start) / gain).where(gain > MARGIN, torch.nan)))


def start(insertion: Curves) -> Tensor:
    """Return the score that insertion starts from `(B,)`."""
    return insertion.values[:, 0]


def area_between(morf: Curves, lerf: Curves) -> Tensor:
    """Return the area between the curve of the least relevant first and that of the most relevant first `(B,)`.

    It is ABPC over whole curves; 0 in the mean for maps that say nothing.
    """
    check_pair(morf, lerf)
    return area(lerf) - area(morf)


def combined(morf: Curves, lerf: Curves) -> Tensor:
    """Return half the area between both curves `(B,)`: the one number of ROAD."""
    return area_between(morf, lerf) / 2


def mean_drop(deletion: Curves) -> Tensor:
    """Return the mean over steps of how far the score is below that of the image itself `(B,)`: AOPC.

    Example:
        >>> zeros = torch.zeros(1)
        >>> curve = Curves(torch.tensor([[1.0, 0.4, 0.2]]), torch.arange(3) / 2, zeros, zeros + 1, *[zeros] * 3, {})
        >>> round(mean_drop(curve).item(), 6)
        0.7
    """
    steps = deletion.values[:, deletion.fractions.to(deletion.values.device) > 0]
    return (deletion.clean[:, None] - steps).mean(1)
