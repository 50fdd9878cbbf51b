"""Scores: what a curve shows of the logits of a perturbed image."""

from typing import Literal

import torch
from torch import Tensor

Score = Literal["probability", "logit", "log_odds", "accuracy", "agreement"]


def score(logits: Tensor, kind: Score, targets: Tensor) -> Tensor:
    """Return one number for each row of logits `(N, C)`, float64 `(N,)`.

    Args:
        logits: Of perturbed images.
        kind: Of a class its softmax probability, its logit, or the logarithm of its odds; or whether it is the
            prediction: `accuracy` where targets are labels, `agreement` where they are predictions of clean images.
        targets: The class, fixed for each image, never taken anew `(N,)`.

    Example:
        >>> score(torch.tensor([[2.0, 2.0]]), "log_odds", torch.tensor([0])).tolist()
        [0.0]
    """
    logits = logits.double()
    if kind in ("accuracy", "agreement"):
        return (logits.argmax(1) == targets).double()
    own = logits.gather(1, targets[:, None])[:, 0]  # (N,)
    if kind == "logit":
        return own
    if kind == "probability":
        return (own - logits.logsumexp(1)).exp()
    others = logits.scatter(1, targets[:, None], -torch.inf)  # without 1 - p, which is 0 where p rounds to 1
    return own - others.logsumexp(1)
