"""Autoencoders whose codes are too dense, or whose penalty needs every pre-activation: plain dense algebra."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.sae.autoencoder import SAE, Objective
from impact_lightning.sae.tokens import count_tokens, token_weight


class DenseSAE(SAE):
    """What ReLU, JumpReLU and Gated share: a loss of reconstruction and a penalty, both differentiated by autograd."""

    def objective(self, x: Tensor, target: Tensor | None = None) -> Objective:
        """See `SAE.objective`."""
        with torch.autocast(x.device.type, enabled=False):
            x, target = x.to(self.w_enc.dtype), self.targets(x, target)
            n_tokens = count_tokens(x)
            weight = token_weight(n_tokens)
            z = self.pre_activations(x)
            codes = self.activate(z)
            output = self.decode(codes, x)
            reconstruction = F.mse_loss(output, target, reduction="sum") * weight
            penalty = self.penalty(x, target, z, codes, weight) * self.penalty_factor
            with torch.no_grad():
                counts = (codes > 0).sum(0)
                self.dead.update(counts, n_tokens)
            return Objective(
                loss=reconstruction + penalty,
                reconstruction=reconstruction.detach(),
                penalty=penalty.detach(),
                aux=reconstruction.new_zeros(()),
                l0=(counts.sum() * weight).to(reconstruction.dtype),
                output=output.detach(),
                counts=counts,
            )

    @abstractmethod
    def penalty(self, x: Tensor, target: Tensor, z: Tensor, codes: Tensor, weight: float) -> Tensor:
        """Return the variant's own term of the loss.

        Args:
            x: Inputs `(B, D_in)`.
            target: What the output should be, `(B, D_out)`.
            z: Pre-activations `(B, F)`.
            codes: Codes `(B, F)`.
            weight: Weight of a token in a mean over tokens.
        """
