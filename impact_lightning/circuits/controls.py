"""Controls: circuits that know nothing, and the p-values of those that were found."""

import math

import torch
from torch import Tensor, nn

from impact_lightning.circuits.nodes import Nodes


def random_circuits(switches: Tensor, nodes: Nodes, draws: int, *, seed: int, outside: bool = False) -> Tensor:
    """Return circuits with as many switches on in every site as a given one, at random: `(n,) -> (draws, n)`.

    A switch counts where its first node is.

    Args:
        switches: Which switches are on.
        nodes: The nodes.
        draws: How many circuits.
        seed: Seed of the draws.
        outside: Draw switches that the given circuit has not; of its own only where a site has too few others.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.zeros(draws, nodes.n_switches, dtype=torch.bool)
    of_site = nodes.site_of_switches()
    for site in of_site.unique():
        own = (of_site == site).nonzero().flatten()
        k = int(switches[own].sum())
        late = switches[own].to(torch.float32) if outside else 0.0
        order = (torch.rand(draws, len(own), generator=generator) + late).argsort(1)[:, :k]  # (draws, k)
        drawn[:, own] = torch.zeros(draws, len(own), dtype=torch.bool).scatter_(1, order, value=True)
    return drawn


@torch.no_grad()
def permute_weights(model: nn.Module, seed: int) -> None:
    """Permute the nonzero entries of each weight matrix of a model among themselves: as sparse, and without meaning."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight = layer.weight.flatten()
            at = weight.nonzero().flatten().cpu()
            weight[at] = weight[at[torch.randperm(len(at), generator=generator)]]
            layer.weight.copy_(weight.view_as(layer.weight))


def p_value(found: float, drawn: Tensor, *, lower_is_better: bool) -> float:
    """Return `(1 + draws at least as good) / (1 + draws)`.

    Example:
        >>> p_value(0.5, torch.tensor([0.4, 0.6, 0.7]), lower_is_better=True)
        0.5
    """
    as_good = drawn <= found if lower_is_better else drawn >= found
    return (1 + int(as_good.sum())) / (1 + len(drawn))


def jaccard(a: Tensor, b: Tensor, nodes: Nodes) -> tuple[float, float]:
    """Return the overlap of two circuits `(n,)`, and what is expected if both drew as many nodes of every site.

    Of p and q nodes of a site with w, p q / w are expected in both.
    """
    p, q, w = (
        torch.tensor([float(part) for part in column], dtype=torch.float64)
        for column in zip(*((a[s.of].sum(), b[s.of].sum(), s.width) for s in nodes.sites), strict=True)
    )
    return ratio_of_sets(int((a & b).sum()), int(a.sum()), int(b.sum())), ratio_of_sets(
        float((p * q / w).sum()), int(a.sum()), int(b.sum())
    )


def ratio_of_sets(both: float, a: int, b: int) -> float:
    """Return the share of what is in one of two sets that is in both; nan of two empty ones.

    Example:
        >>> ratio_of_sets(1, 2, 2)
        0.3333333333333333
    """
    either = a + b - both
    return both / either if either else math.nan


def faithfulness(curve: Tensor, full: Tensor, empty: Tensor) -> Tensor:
    """Return `(m(circuit) - m(empty)) / (m(full) - m(empty))` of margins; nan where a model is as good as constants."""
    way = full - empty
    return torch.where(way == 0, torch.nan, (curve - empty) / way)


def areas(shares: Tensor, f: Tensor) -> tuple[float, float]:
    """Return CPR, the area under faithfulness f by share of nodes, and CMD, that of its distance from 1 (MIB).

    Example:
        >>> areas(torch.tensor([0.001, 1.0]), torch.tensor([1.0, 1.0]))[1]
        0.0
    """
    return float(torch.trapezoid(f, shares)), float(torch.trapezoid((1 - f).abs(), shares))
