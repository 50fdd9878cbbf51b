"""Autoencoders with few active latents by construction: their training step never builds the dense code matrix."""

import math
from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.sae.autoencoder import SAE, Objective
from impact_lightning.sae.codes import Codes
from impact_lightning.sae.dead_latents import aux_loss, dead_codes
from impact_lightning.sae.gradient_memory import GradientMemory
from impact_lightning.sae.reconstruction import DeadCodes, Layout, reconstruct
from impact_lightning.sae.tokens import count_tokens, token_weight
from impact_lightning.types import UserError


class SparseSAE(SAE):
    """What TopK, BatchTopK and Matryoshka share: selection, sparse reconstruction, AuxK.

    Args:
        d_in: Width of the input.
        n_latents: Number of features.
        k: Active latents per token.
        d_out: Width of the target of a transcoder; None makes an autoencoder.
        skip: Whether a transcoder adds a linear map of its input.
        dead_after: See `SAE`.
        k_aux: Dead latents per token that help to explain the error; None takes half of the output's width.
        aux_weight: Weight of AuxK in the loss; 1 would weigh an unexplained error like one of everything.
        aux_relu: Whether AuxK uses positive pre-activations only.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        k: float = 32,
        d_out: int | None = None,
        skip: bool = False,
        dead_after: int | None = None,
        k_aux: int | None = None,
        aux_weight: float = 1 / 32,
        aux_relu: bool = True,
    ) -> None:
        super().__init__(d_in, n_latents, d_out=d_out, skip=skip, dead_after=dead_after)
        if not 0 < k < math.inf:
            raise UserError(f"k: {k} active latents for each token must be more than 0")
        if aux_weight < 0 or (k_aux or 0) < 0:
            raise UserError(f"aux_weight {aux_weight} and k_aux {k_aux} must not be negative; 0 leaves AuxK out")
        self.k = k
        self.k_aux = self.w_dec.shape[1] // 2 if k_aux is None else k_aux
        self.aux_weight = aux_weight
        self.aux_relu = aux_relu
        self.prefixes: tuple[int, ...] = (n_latents,)  # numbers of latents that must reconstruct on their own
        self.prefix_weights: tuple[float, ...] = (1.0,)
        self.memory: GradientMemory | None = None

    def take_shortcuts(self) -> None:
        """Save the time that only gradients which anyone may read and keep are worth: for loops with `DictionaryAdam`.

        Weight gradients come in the same memory in every step, and the decoder's without the part along its rows.
        """
        self.memory = GradientMemory()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See `SAE.parameter_groups`."""
        decoder, others = super().parameter_groups()
        return [decoder | {"projected": self.memory is not None}, others]

    @abstractmethod
    def choose(self, xc: Tensor, n_tokens: int) -> Codes:
        """Return the codes of a training batch, without gradient.

        Args:
            xc: Centred inputs `(B, D_in)` of this rank.
            n_tokens: Tokens of the batch on all ranks.
        """

    def encode(self, x: Tensor) -> Tensor:
        """Return codes, `(..., D_in) -> (..., F)`: in training those of the batch's selection."""
        z = self.pre_activations(x)
        if not self.training:
            return self.activate(z)
        flat = x.flatten(0, -2)  # (..., D_in) -> (N, D_in)
        with torch.no_grad():
            codes = self.choose(self.centre(flat), count_tokens(flat))
            kept = torch.zeros(len(flat), self.n_latents, dtype=torch.bool, device=x.device)
            kept[codes.rows, codes.latents] = True
        return z * kept.view_as(z)

    def objective(self, x: Tensor, target: Tensor | None = None) -> Objective:
        """See `SAE.objective`."""
        with torch.autocast(x.device.type, enabled=False):  # comparisons and Adam need the precision of the weights
            return self._objective(x.to(self.w_enc.dtype), self.targets(x, target))

    def _objective(self, x: Tensor, target: Tensor) -> Objective:
        with torch.no_grad():
            xc = self.centre(x)
            n_tokens = count_tokens(x)
            codes = self.choose(xc, n_tokens)
            dead = self._dead_codes(xc)
            counts = torch.bincount(codes.latents, minlength=self.n_latents)
            self.dead.update(counts, n_tokens)
        layout = Layout(
            centred=None if self.is_transcoder else xc,
            prefixes=self.prefixes,
            memory=self.memory,
            tangent=self.memory is not None,
        )
        outputs, _, from_dead = reconstruct(x, self.weights, codes, layout, dead)  # (G, B, D_out)
        if self.w_skip is not None:
            outputs = outputs + self.skip(x)
        weight = token_weight(n_tokens)
        losses = F.mse_loss(outputs, target.expand_as(outputs), reduction="none").sum((1, 2)) * weight  # (G,)
        aux = losses.new_zeros(())
        if dead:
            aux = aux_loss(target - outputs[-1], from_dead, target) * self.aux_weight
        loss = losses[0] if len(losses) == 1 else losses @ losses.new_tensor(self.prefix_weights)
        return Objective(
            loss=loss + aux,
            reconstruction=losses[-1].detach(),
            penalty=losses.new_zeros(()),
            aux=aux.detach(),
            l0=losses.new_tensor(len(codes.values) * weight),
            output=outputs[-1].detach(),
            counts=counts,
        )

    def _dead_codes(self, xc: Tensor) -> DeadCodes | None:
        latents = self.dead.indices()
        if not (len(latents) and self.aux_weight and self.k_aux):
            return None
        return dead_codes(xc, self.weights, latents, min(len(latents), self.k_aux), self.aux_relu)
