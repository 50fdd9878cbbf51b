"""Decoder geometry: how alike the features of one dictionary are, and those of two.

Every number stands beside the same number for a `random_decoder` of the same shape: in few dimensions, many random
directions are alike.
"""

from math import log, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.types import UserError

ROWS = 1024  # rows of the cosine matrix at a time: (1024, F), never (F, F)


def random_decoder(n_latents: int, width: int, *, seed: int = 0) -> Tensor:
    """Return independent random directions `(F, D)`, float32: what a decoder's geometry is compared with."""
    rows = torch.randn(n_latents, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=1)


def expected_max_cosine(n_latents: int, width: int) -> float:
    """Return `sqrt(2 ln F / D)`, about the largest of F cosines with one random direction in D dimensions.

    Example:
        >>> round(expected_max_cosine(1024, 128), 2)
        0.33
    """
    return sqrt(2 * log(n_latents) / width)


def nearest(decoder: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the rows most like each row, nearest first, and their cosines, `(F, D) -> (F, n)` each.

    Example:
        >>> nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]), 1)[0].flatten().tolist()
        [1, 2, 1]
    """
    if len(decoder) <= n:
        raise UserError(f"nearest: a decoder of {len(decoder)} latents has not {n} others for each")
    directions = _directions(decoder)
    rows, values = [], []
    for start in range(0, len(directions), ROWS):
        cosines = directions[start : start + ROWS] @ directions.T  # (1024, F)
        cosines.diagonal(start).fill_(-torch.inf)  # each row is most like itself
        best = cosines.topk(n, dim=1)
        rows.append(best.indices)
        values.append(best.values)
    return torch.cat(rows), torch.cat(values)


def max_cosine(decoder: Tensor) -> Tensor:
    """Return each row's cosine with the row most like it, `max_{j≠i} cos(d_i, d_j)`, `(F, D) -> (F,)`.

    Example:
        >>> max_cosine(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])).tolist()
        [0.0, 1.0, 1.0]
    """
    if len(decoder) < 2:
        raise UserError(f"max_cosine: a decoder of {len(decoder)} latents has no two to compare")
    return nearest(decoder, 1)[1].squeeze(1)


def best_cosines(decoder: Tensor, other: Tensor) -> Tensor:
    """Return each row's cosine with the row of another decoder most like it, `(F, D), (F', D) -> (F,)`."""
    _check_widths(decoder, other)
    rows, columns = _directions(decoder), _directions(other)
    return torch.cat([(part @ columns.T).amax(1) for part in rows.split(ROWS)])


def mmcs(decoder: Tensor, other: Tensor) -> Tensor:
    """Return the mean max cosine similarity, `mean_i max_j cos(d_i, d'_j)`, of decoders `(F, D)` and `(F', D)`.

    It is not symmetric: it asks how much of `decoder` is found in `other`.
    """
    return best_cosines(decoder, other).double().mean()


def pw_mcc(decoder: Tensor, other: Tensor) -> Tensor:
    """Return the mean cosine of the one-to-one matching of two decoders that makes it largest (arXiv 2505.20254).

    Unlike `mmcs`, no feature is the partner of two. Decoders of different size match all features of the smaller.
    The matching (Hungarian algorithm) holds all cosines in memory and takes `O(F³)` time: for thousands of latents,
    not for hundreds of thousands.
    """
    from scipy.optimize import linear_sum_assignment

    _check_widths(decoder, other)
    cosines = (_directions(decoder) @ _directions(other).T).double()  # (F, F')
    rows, columns = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
    return cosines[rows, columns].mean()


def _directions(decoder: Tensor) -> Tensor:
    decoder = decoder.detach().float()
    norms = decoder.norm(dim=1, keepdim=True)  # (F, 1)
    usable = (norms > 0) & norms.isfinite()
    if not usable.all():
        row = int((~usable).flatten().nonzero()[0])
        raise UserError(f"decoder row {row} is zero or not finite: it has no direction")
    directions: Tensor = decoder / norms
    return directions


def _check_widths(decoder: Tensor, other: Tensor) -> None:
    if decoder.shape[1] != other.shape[1]:
        raise UserError(f"decoders of widths {decoder.shape[1]} and {other.shape[1]} do not compare")
