"""Masks: from thresholds of switches to numbers between 0 and 1, while they are learnt."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from impact_lightning.circuits.gate import Heaviside

MaskKind = Literal["heaviside", "hard_concrete", "sigmoid"]
STRETCH, CONCRETE = 0.1, 2 / 3  # beyond [0, 1] on both sides, and the temperature, of a hard concrete mask
COLDEST = 0.02  # temperature of a sigmoid mask at the end
START: dict[MaskKind, float] = {"heaviside": 0.1, "hard_concrete": 2.0, "sigmoid": 2.0}  # every switch begins on


class Relaxed(NamedTuple):
    """Masks while they are learnt."""

    switches: Tensor  # (P, n) from 0 to 1
    sizes: Tensor  # (P, n) what each switch counts for in the size of a circuit


def relaxed(theta: Tensor, kind: MaskKind, temperature: float, progress: float, uniform: Tensor | None) -> Relaxed:
    """Return masks of thresholds `(P, n)`; the hard mask, which every number is of, is `theta >= 0` of all kinds.

    `heaviside`: `1[theta >= 0]` with the gradient of `sigmoid(theta / T)`. `sigmoid`: `sigmoid(theta / T)`, with T that
    falls from the temperature to 0.02. `hard_concrete`: `clip(1.2 s - 0.1)` of `s = sigmoid((logit u + theta) / T)`.

    Args:
        theta: Thresholds.
        kind: Kind of mask.
        temperature: T at the start.
        progress: Which share of the training is over.
        uniform: u of a hard concrete mask, `(P, n)` between 0 and 1.
    """
    if kind == "heaviside":
        hard: Tensor = Heaviside.apply(theta, temperature)
        return Relaxed(hard, hard)
    if kind == "sigmoid":
        soft = torch.sigmoid(theta / (temperature * (COLDEST / temperature) ** progress))
        return Relaxed(soft, soft)
    assert uniform is not None
    s = torch.sigmoid((uniform.logit() + theta) / CONCRETE)
    is_on = torch.sigmoid(theta - CONCRETE * math.log(STRETCH / (1 + STRETCH)))  # probability of not being 0
    return Relaxed((s * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1), is_on)


def noise(seeds: Sequence[int], n: int, step: int) -> Tensor:
    """Return u of a step for each circuit, `(P, n)`: a function of its seed and the step alone."""
    rows = np.stack([np.random.default_rng([seed, step]).random(n, dtype=np.float32) for seed in seeds])
    return torch.from_numpy(rows).clamp(1e-6, 1 - 1e-6)
