"""The gate: an activation where a node is on, a constant where it is off."""

from typing import Any

import torch
from torch import Tensor


class Gate(torch.autograd.Function):
    """`m x + (1 - m) mu` with gradients by x, m and mu; saves x alone, and reads it once in each direction.

    `dx = m g`, `dm = sum_t g (x - mu)`, `dmu = (1 - m) g`, summed to the shape of mu.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, m: Tensor, mu: Tensor) -> Tensor:
        """Return what flows on.

        Args:
            ctx: Of autograd.
            x: Activations `(B, T, w)`.
            m: Which nodes are on in each image, from 0 to 1, `(B, w)`.
            mu: What replaces them where they are off, `(B or 1, T or 1, w)`.
        """
        ctx.save_for_backward(x, m, mu)
        on = m[:, None].to(x.dtype)
        constant = (1 - on) * mu.to(x.dtype)  # (B, 1 or T, w)
        return torch.addcmul(constant, x, on)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients."""
        x, m, mu = ctx.saved_tensors
        needs_x, needs_m, needs_mu = ctx.needs_input_grad
        on = m[:, None].to(g.dtype)
        dx = dm = dmu = None
        if mu.shape[1] == 1 and not x.is_cuda:
            dx, products, sums = _in_cache(g, x, on, needs_x=needs_x)
            dm = products - sums * mu[:, 0].to(sums.dtype)
            if needs_mu:
                dmu = _sum_to((1 - m).to(sums.dtype)[:, None] * sums[:, None], mu)
            return dx, dm.to(m.dtype), dmu
        if needs_x:
            dx = g * on
        if needs_m:
            dm = (g * (x - mu.to(x.dtype))).sum(1, dtype=torch.float32 if g.itemsize < 4 else None).to(m.dtype)
        if needs_mu:
            dmu = _sum_to((1 - on) * g, mu)
        return dx, dm, dmu


def _in_cache(g: Tensor, x: Tensor, on: Tensor, *, needs_x: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return `m g`, and the sums over tokens of `g x` and of `g` `(B, w)`; image by image, each stays in the cache."""
    dx = torch.empty_like(g) if needs_x else None
    dtype = torch.float32 if g.itemsize < 4 else g.dtype
    products, sums = g.new_empty(len(g), g.shape[2], dtype=dtype), g.new_empty(len(g), g.shape[2], dtype=dtype)
    held = torch.empty_like(g[0])
    for i in range(len(g)):
        torch.mul(g[i], x[i], out=held)
        torch.sum(held, 0, dtype=dtype, out=products[i])
        torch.sum(g[i], 0, dtype=dtype, out=sums[i])
        if dx is not None:
            torch.mul(g[i], on[i], out=dx[i])
    return dx, products, sums


def _sum_to(x: Tensor, like: Tensor) -> Tensor:
    """Return x summed over the dimensions in which `like` has one entry."""
    over = [d for d in range(x.ndim) if like.shape[d] == 1 and x.shape[d] != 1]
    summed = x.sum(over, keepdim=True) if over else x
    return summed.to(like.dtype)


class Heaviside(torch.autograd.Function):
    """`1[theta >= 0]` forward; backward the derivative of `sigmoid(theta / T)`."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, temperature: float) -> Tensor:
        """Return which switches are on, as numbers."""
        ctx.save_for_backward(theta)
        ctx.temperature = temperature
        return (theta >= 0).to(theta.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Return the straight-through gradient."""
        (theta,) = ctx.saved_tensors
        s = torch.sigmoid(theta / ctx.temperature)
        return g * s * (1 - s) / ctx.temperature, None
