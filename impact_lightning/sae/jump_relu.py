"""JumpReLU autoencoders: a learned threshold for every latent, trained through straight-through estimates."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

from impact_lightning.ranks import all_sum, rank_and_world
from impact_lightning.sae.dense_autoencoder import DenseSAE


class JumpReLU(DenseSAE):
    """JumpReLU (arXiv 2407.14435): `f = z·1[z > θ]` with a penalty on the number of active latents.

    Args:
        d_in: Width of the input.
        n_latents: Number of features.
        sparsity_weight: λ of the penalty.
        target_l0: Aim at this many active latents per token with `λ (L0 / target − 1)²`; None penalises `λ·L0`.
        initial_threshold: Where all thresholds begin.
        bandwidth: Width of the window around a threshold whose pre-activations give it a gradient, in units of `z`.
        through_encoder: Whether the encoder receives the window's gradient, too.
        options: See `SAE`.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        sparsity_weight: float = 1.0,
        target_l0: float | None = None,
        initial_threshold: float = 0.01,
        bandwidth: float = 0.05,
        through_encoder: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, **options)
        self.theta = Parameter(torch.full((n_latents,), initial_threshold))  # itself: Adam hardly moves its logarithm
        self.sparsity_weight = sparsity_weight
        self.target_l0 = target_l0
        self.bandwidth = bandwidth
        self.through_encoder = through_encoder

    def activate(self, z: Tensor) -> Tensor:
        """See `SAE.activate`."""
        codes: Tensor = _Jump.apply(z, self.theta, self.bandwidth, self.through_encoder)
        return codes

    def penalty(self, x: Tensor, target: Tensor, z: Tensor, codes: Tensor, weight: float) -> Tensor:
        """See `DenseSAE.penalty`."""
        active: Tensor = _Step.apply(z, self.theta, self.bandwidth)
        l0 = active.sum() * weight
        if self.target_l0 is None:
            return self.sparsity_weight * l0
        everywhere = all_sum(l0.detach()) / rank_and_world()[1]  # the square of a mean over all ranks' tokens
        off = everywhere / self.target_l0 - 1
        slope = 2 * off / self.target_l0
        return self.sparsity_weight * (off.square() + slope * (l0 - l0.detach()))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See `SAE.parameter_groups`; thresholds stay at 0 or above."""
        decoder, others = super().parameter_groups()
        others["params"] = [weight for weight in others["params"] if weight is not self.theta]
        return [decoder, others, {"params": [self.theta], "non_negative": True}]


class _Jump(torch.autograd.Function):
    """`z·1[z > θ]`, with `∂f/∂θ = −(θ/ε) K((z − θ)/ε)` for the window `K(u) = 1[|u| < ½]`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float, through_encoder: bool) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth, ctx.through_encoder = bandwidth, through_encoder
        return z * (z > theta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, theta = ctx.saved_tensors
        near = g * ((z - theta).abs() < ctx.bandwidth / 2) * (theta / ctx.bandwidth)
        d_z = g * (z > theta)
        return d_z + near if ctx.through_encoder else d_z, -near.flatten(0, -2).sum(0), None, None


class _Step(torch.autograd.Function):
    """`1[z > θ]`, with `∂/∂θ = −(1/ε) K((z − θ)/ε)` and no gradient for z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return (z > theta).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, None]:
        z, theta = ctx.saved_tensors
        near = g * ((z - theta).abs() < ctx.bandwidth / 2)
        return None, -near.flatten(0, -2).sum(0) / ctx.bandwidth, None
