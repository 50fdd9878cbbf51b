"""Gated autoencoders: one product decides which latents fire and, scaled, how strongly."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from impact_lightning.sae.dense_autoencoder import DenseSAE


class Gated(DenseSAE):
    """Gated autoencoder (arXiv 2404.16014).

    With `p = W_enc (x − b_dec)`: gate `π = p + b_enc`, magnitude `m = exp(r_mag)·p + b_mag`, codes `1[π > 0]·relu(m)`.
    The loss adds `λ Σ_j relu(π_j) ‖d_j‖` and the error of reconstructing from `relu(π)` with a detached decoder.

    The decoder's rows keep unit length: free ones shrink to escape the penalty, and `r_mag` makes up for it.

    Args:
        d_in: Width of the input.
        n_latents: Number of features.
        sparsity_weight: λ.
        options: See `SAE`.
    """

    def __init__(self, d_in: int, n_latents: int, *, sparsity_weight: float = 1.0, **options: Any) -> None:
        super().__init__(d_in, n_latents, **options)
        self.sparsity_weight = sparsity_weight
        self.r_mag = Parameter(torch.zeros(n_latents))
        self.b_mag = Parameter(torch.zeros(n_latents))

    def activate(self, z: Tensor) -> Tensor:
        """Return the codes of gates `z = π`."""
        magnitude = self.r_mag.exp() * (z - self.b_enc) + self.b_mag
        return (z > 0) * magnitude.relu()

    def penalty(self, x: Tensor, target: Tensor, z: Tensor, codes: Tensor, weight: float) -> Tensor:
        """See `DenseSAE.penalty`."""
        gates = z.relu()
        sparsity = torch.dot(gates.sum(0), torch.linalg.vector_norm(self.w_dec, dim=1))
        from_gates = gates @ self.w_dec.detach() + self.b_dec.detach() + self.skip(x)
        return (sparsity * self.sparsity_weight + F.mse_loss(from_gates, target, reduction="sum")) * weight
