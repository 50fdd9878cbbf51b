"""Concentration of relevance maps: how unevenly they are spread, whatever their sign."""

import torch
from torch import Tensor

from impact_lightning.metrics.gini import gini
from impact_lightning.metrics.ratio import ratio


def map_sparseness(maps: Tensor) -> Tensor:
    """Return the Gini index of the magnitudes of each map `(B, h, w)`, float64 `(B,)`; nan for a map of zeros.

    It is 0 where all are equal, and `1 - 1/n` where one of n patches has everything (arXiv 1810.06583).

    Example:
        >>> map_sparseness(torch.tensor([[[-1.0, 1.0]], [[0.0, 3.0]]])).tolist()
        [0.0, 0.5]
    """
    return gini(maps.abs().flatten(1))


def complexity(maps: Tensor) -> Tensor:
    """Return the entropy of the magnitudes of each map in nats, float64 `(B,)`; nan for a map of zeros.

    It is ln n where all of n patches are equal, and 0 where one has everything (arXiv 2005.00631).

    Example:
        >>> complexity(torch.tensor([[[-1.0, 1.0]], [[0.0, 3.0]]])).tolist()
        [0.6931471805599453, 0.0]
    """
    magnitude = maps.abs().double().flatten(1)  # (B, h, w) -> (B, n)
    entropies: Tensor = torch.special.entr(ratio(magnitude, magnitude.sum(1, keepdim=True)))
    return entropies.sum(1)
