"""Infidelity (arXiv 1901.09392): how far relevance is from what the removal of something costs."""

from torch import Tensor

from impact_lightning.metrics.ratio import ratio


def infidelity(mass: Tensor, drops: Tensor, *, optimal_scale: bool = False) -> Tensor:
    """Return `E (I·φ - (f(x) - f(x - I)))²` over perturbations I of each image `(B,)` float64.

    Args:
        mass: I·φ, the relevance of what each perturbation removes `(B, M)`.
        drops: How far the score falls `(B, M)`.
        optimal_scale: Whether a map is first multiplied by the number that suits it best: maps have no unit.

    Example:
        >>> import torch
        >>> mass, drops = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.5]])
        >>> infidelity(mass, drops).item(), infidelity(mass, drops, optimal_scale=True).item()
        (0.625, 0.125)
    """
    mass, drops = mass.double(), drops.double()
    if optimal_scale:
        scale = ratio((mass * drops).sum(1, keepdim=True), (mass**2).sum(1, keepdim=True))
        mass = scale.nan_to_num(0.0) * mass  # a map of zeros stays one
    return ((mass - drops) ** 2).mean(1)
