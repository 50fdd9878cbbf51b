"""ReLU autoencoders with an L1 penalty."""

from typing import Any

import torch
from torch import Tensor

from impact_lightning.sae.dense_autoencoder import DenseSAE


class ReLU(DenseSAE):
    """`f = relu(z)` with the penalty `λ Σ_j f_j ‖d_j‖`, which growing decoder rows cannot cheat.

    Args:
        d_in: Width of the input.
        n_latents: Number of features.
        sparsity_weight: λ.
        options: See `SAE`.
    """

    unit_decoder = False

    def __init__(self, d_in: int, n_latents: int, *, sparsity_weight: float = 1.0, **options: Any) -> None:
        super().__init__(d_in, n_latents, **options)
        self.sparsity_weight = sparsity_weight

    def activate(self, z: Tensor) -> Tensor:
        """See `SAE.activate`."""
        return z.relu()

    def penalty(self, x: Tensor, target: Tensor, z: Tensor, codes: Tensor, weight: float) -> Tensor:
        """See `DenseSAE.penalty`."""
        lengths = torch.linalg.vector_norm(self.w_dec, dim=1)
        return torch.dot(codes.sum(0), lengths) * (self.sparsity_weight * weight)
