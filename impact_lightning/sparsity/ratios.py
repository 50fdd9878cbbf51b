"""Ratios: how much of each layer is pruned, so that the whole has the sparsity that was asked for."""

from collections.abc import Mapping
from typing import Literal

import torch

from impact_lightning.sparsity.calibration import Inputs
from impact_lightning.sparsity.scores import wanda
from impact_lightning.sparsity.targets import Target, select
from impact_lightning.types import UserError

Ratios = Literal["uniform", "outliers"] | dict[str, float]

OUTLIER = 5.0  # times the mean score of its block: what OWL calls an outlier
SPREAD = 0.08  # OWL's lambda: ratios lie within a range of twice this


def mapped_ratios(targets: list[Target], sparsity: float, wanted: Mapping[str, float]) -> dict[str, float]:
    """Return the ratios that a person gives to some layers; the others share the rest of the zeros evenly.

    Args:
        targets: The layers.
        sparsity: Share of zeros of all of them together.
        wanted: Ratio by name, glob, or regular expression after `re:`; of several that mean a layer the last counts.
    """
    given: dict[str, float] = {}
    for pattern, ratio in wanted.items():
        if not 0 <= ratio < 1:
            raise UserError(f"ratios: {pattern} must lie in [0, 1), got {ratio}")
        given |= {target.name: ratio for target in select(pattern, targets, "ratios")}
    sizes = {target.name: target.weight.numel() for target in targets}
    total = sum(sizes.values())
    fixed = sum(ratio * sizes[name] for name, ratio in given.items())
    free = total - sum(sizes[name] for name in given)
    left = (sparsity * total - fixed) / free if free else 0.0
    if not free and abs(fixed / total - sparsity) > 1e-6:
        raise UserError(f"ratios: they make {fixed / total:.6f} of all weights zero, and sparsity says {sparsity}")
    if free and not 0 <= left < 1:
        raise UserError(f"ratios: the other layers would need the ratio {left:.4f} to reach a sparsity of {sparsity}")
    return {name: given.get(name, left) for name in sizes}


def outlier_ratios(targets: list[Target], sparsity: float, outliers: Mapping[int, float]) -> dict[str, float]:
    """Return ratios that spare blocks with many outliers (OWL, arXiv 2310.05175).

    The density of block b is `1 - s + c (d_b - mean d)`, with d the share of outliers scaled to a range of `2 SPREAD`
    and the mean over all weights. c is 1 unless a block would fall below half of the mean density, or become denser
    than dense.

    Args:
        targets: The layers.
        sparsity: Share of zeros of all of them together.
        outliers: Share of outliers of every stage.
    """
    size = torch.zeros(len(outliers), dtype=torch.float64)
    place = {stage: i for i, stage in enumerate(sorted(outliers))}
    for target in targets:
        size[place[target.stage]] += target.weight.numel()
    share = torch.tensor([outliers[stage] for stage in place], dtype=torch.float64)
    span = float(share.max() - share.min())
    d = (share - share.min()) * (2 * SPREAD / span) if span else torch.zeros_like(share)
    d -= (d * size).sum() / size.sum()
    room = 1.0
    if span:
        room = min(1.0, sparsity / float(d.max()), (1 - sparsity) / 2 / float(-d.min()))
    return {target.name: max(sparsity - room * float(d[place[target.stage]]), 0.0) for target in targets}


def outlier_shares(targets: list[Target], inputs: Mapping[str, Inputs]) -> dict[int, float]:
    """Return, for every stage, the share of Wanda scores above `OUTLIER` times their mean."""
    shares = {}
    for stage in sorted({target.stage for target in targets}):
        scores = torch.cat(
            [wanda(target.weight, inputs[target.name].norms).flatten() for target in targets if target.stage == stage]
        )
        shares[stage] = float((scores > OUTLIER * scores.mean()).double().mean())
    return shares
