"""The textbook definitions, dense and in float64, and small problems to try them on."""

from typing import NamedTuple

import torch
from torch import Tensor


class Problem(NamedTuple):
    x: Tensor
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor

    def pre_activations(self) -> Tensor:
        return (self.x - self.b_dec) @ self.w_enc.T + self.b_enc


CASES = ["random", "ties", "scarce", "none", "wide"]


def problem(case: str, n_rows: int = 24, width: int = 10, n_latents: int = 60, seed: int = 0) -> Problem:
    """Return a problem in float64 whose leaves want gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, w_enc, w_dec = normal(n_rows, width), normal(n_latents, width) / width**0.5, normal(n_latents, width)
    w_dec = w_dec / w_dec.norm(dim=1, keepdim=True)
    b_enc, b_dec = 0.1 * normal(n_latents), 0.1 * normal(width)
    if case == "ties":  # multiples of a quarter: products are exact, and hundreds of them equal
        x, w_enc = (2 * x).round() / 2, (2 * w_enc).round() / 2
        b_enc, b_dec = torch.zeros_like(b_enc), torch.zeros_like(b_dec)
    if case == "scarce":  # fewer positive entries than are to be kept
        b_enc = b_enc - 2.2
    if case == "none":
        b_enc = b_enc - 1e3
    return Problem(*(leaf.requires_grad_() for leaf in (x, w_enc, b_enc, w_dec, b_dec)))


def largest(z: Tensor, m: int) -> Tensor:
    """Return where the m largest positive entries of a matrix are; of equals, the first in row-major order."""
    flat = z.detach().flatten()
    order = torch.sort(flat, descending=True, stable=True).indices[:m]
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[order[flat[order] > 0]] = True
    return mask.view_as(z)


def gradients(loss: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the gradients of a loss, zeros where there is none."""
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]


def assert_all_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-10) -> None:
    for ours_, theirs_ in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_, theirs_, rtol=0, atol=tolerance)
