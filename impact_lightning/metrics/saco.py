"""SaCo (CVPR 2024): whether groups of more relevant pixels matter more, each removed alone."""

import torch
from torch import Tensor

from impact_lightning.metrics.curves import Curves
from impact_lightning.metrics.ratio import ratio
from impact_lightning.types import UserError

ROUNDING = 1e-6  # of the largest relevance: maps are ranked in float32


def saco(groups: Curves) -> Tensor:
    """Return the salience-guided faithfulness coefficient of curves of groups, from -1 to 1 `(B,)`.

    The relevance of a group is the mean of its units, where the paper has their sum: groups of n units that K does not
    divide differ in size, and sums would compare sizes. Means descend, and what is added to all units changes nothing.
    """
    if groups.protocol["curve"] != "groups":
        raise UserError(f"SaCo needs the curve 'groups', got {groups.protocol['curve']!r}")
    means = groups.mass / groups.fractions.to(groups.mass)  # but for a factor, the number of units
    return saco_of(means, groups.clean[:, None] - groups.values)


def saco_of(relevance: Tensor, drops: Tensor) -> Tensor:
    """Return `Σ_{i<j} sgn_ij (s_i - s_j) / Σ_{i<j} |s_i - s_j|` `(B,)`; nan where all groups are equally relevant.

    Relevance that differs by rounding alone, on average less than a millionth of the largest, is equal.

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
    spread = difference.abs()
    is_equal = spread.mean(1) <= ROUNDING * relevance.abs().amax(1)
    return ratio((sign * difference).sum(1), spread.sum(1)).masked_fill(is_equal, torch.nan)
