"""SaCo (CVPR 2024): whether groups of more relevant pixels matter more, each removed alone."""

import torch
from torch import Tensor

from impact_lightning.metrics.curves import Curves
from impact_lightning.metrics.ratio import ratio
from impact_lightning.types import UserError


def saco(groups: Curves) -> Tensor:
    """Return the salience-guided faithfulness coefficient of curves of groups, from -1 to 1 `(B,)`."""
    if groups.protocol["curve"] != "groups":
        raise UserError(f"SaCo needs the curve 'groups', got {groups.protocol['curve']!r}")
    return saco_of(groups.mass, groups.clean[:, None] - groups.values)


def saco_of(relevance: Tensor, drops: Tensor) -> Tensor:
    """Return `Σ_{i<j} sgn_ij (s_i - s_j) / Σ_{i<j} |s_i - s_j|` `(B,)`; nan where all groups are equally relevant.

    Args:
        relevance: s, of each group, in descending order `(B, K)`.
        drops: How far the score falls without it `(B, K)`; the sign is -1 where a less relevant group costs more.

    Example:
        >>> saco_of(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[0.5, 0.1, 0.3]])).item()
        0.5
    """
    i, j = torch.triu_indices(relevance.shape[1], relevance.shape[1], offset=1, device=relevance.device)
    difference = relevance[:, i].double() - relevance[:, j]  # (B, pairs)
    sign = torch.where(drops[:, i] >= drops[:, j], 1.0, -1.0).double()
    return ratio((sign * difference).sum(1), difference.abs().sum(1))
