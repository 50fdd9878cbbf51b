"""Artifact mass: the share of relevance that lies on tokens of outlying norm, which keep no track of their place."""

from torch import Tensor

from impact_lightning.metrics.ratio import ratio
from impact_lightning.types import UserError


def artifact_mass(maps: Tensor, norms: Tensor, *, factor: float = 3.0) -> Tensor:
    """Return the share of positive relevance on patches with outlying norms, float64 `(B,)`; nan without any relevance.

    A map that says nothing has `artifact_share`, which is where random maps come to as well.

    Args:
        maps: Relevance of patches `(B, h, w)`.
        norms: Norms of their tokens at the end of the model, before its last norm `(B, h, w)`.
        factor: A norm is outlying above so many times the median of its image.

    Example:
        >>> import torch
        >>> artifact_mass(torch.tensor([[[1.0, -1.0, 3.0]]]), torch.tensor([[[2.0, 2.0, 9.0]]])).item()
        0.75
    """
    if maps.shape != norms.shape:
        raise UserError(f"maps {tuple(maps.shape)} and norms {tuple(norms.shape)} must be of the same patches")
    positive = maps.double().relu()
    return ratio((positive * outliers(norms, factor)).sum((1, 2)), positive.sum((1, 2)))


def artifact_share(norms: Tensor, *, factor: float = 3.0) -> Tensor:
    """Return the share of patches with outlying norms, float64 `(B,)`."""
    return outliers(norms, factor).double().mean((1, 2))


def outliers(norms: Tensor, factor: float) -> Tensor:
    """Return which patches have norms above so many times the median of their image, bool `(B, h, w)`."""
    return norms > factor * norms.flatten(1).median(dim=1).values[:, None, None]
