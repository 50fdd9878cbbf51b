"""Scores: how much each weight matters; the lowest are removed. In float64, so that only equal scores tie."""

import hashlib

import torch
from torch import Tensor


def random(name: str, weight: Tensor, seed: int) -> Tensor:
    """Return uniform scores that are a function of the seed and of the name of the tensor alone."""
    bits = hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(bits))
    return torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)


def magnitude(weight: Tensor) -> Tensor:
    """Return `|W_ij|`."""
    return weight.double().abs_()


def wanda(weight: Tensor, norms: Tensor) -> Tensor:
    """Return `|W_ij| * ||x_j||_2` (arXiv 2306.11695).

    Args:
        weight: Weights `(out, in)`.
        norms: `(in,)` float64, the norm of every input over all tokens.
    """
    return magnitude(weight).mul_(norms)
