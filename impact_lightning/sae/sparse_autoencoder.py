"""Autoencoders with few active latents by construction: their training step never builds the dense code matrix."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.types import UserError

from .autoencoder import SAE, Objective, per_token
from .codes import Codes
from .dead_latents import DeadCodes, aux_loss, dead_codes
from .gradient_memory import GradientMemory
from .reconstruction import Layout, reconstruct


class Chosen(NamedTuple):
    """Codes of a batch and the number of tokens on all ranks."""

    codes: Codes
    n_tokens: int


class SparseSAE(SAE):
    """What TopK, BatchTopK and Matryoshka share: selection, sparse reconstruction, AuxK.

    Args:
        d_in: Width of the input.
        n_latents: Number of features.
        k: Active latents per token.
        d_out: Width of the target of a transcoder; None makes an autoencoder.
        skip: Whether a transcoder adds a linear map of its input.
        dead_after: Tokens of silence after which a latent counts as dead.
        k_aux: Dead latents per token that help to explain the error; None takes half of the output's width.
        aux_weight: Weight of AuxK in the loss.
        aux_relu: Whether AuxK uses positive pre-activations only.
        prefixes: Ascending numbers of latents, each of which must reconstruct on its own; None is all latents at once.
        prefix_weights: Weight of each prefix; None gives each the same share.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        k: float = 32,
        d_out: int | None = None,
        skip: bool = False,
        dead_after: int = 10_000_000,
        k_aux: int | None = None,
        aux_weight: float = 1 / 32,
        aux_relu: bool = True,
        prefixes: Sequence[int] | None = None,
        prefix_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(d_in, n_latents, d_out=d_out, skip=skip, dead_after=dead_after)
        self.k = k
        self.k_aux = self.w_dec.shape[1] // 2 if k_aux is None else k_aux
        self.aux_weight = aux_weight
        self.aux_relu = aux_relu
        self.prefixes = tuple(prefixes or (n_latents,))
        if list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[-1] != n_latents:
            raise UserError(f"prefixes: {list(self.prefixes)} must ascend and end with all {n_latents} latents")
        n_prefixes = len(self.prefixes)
        self.prefix_weights = tuple(prefix_weights or [1 / n_prefixes] * n_prefixes)
        if len(self.prefix_weights) != n_prefixes:
            raise UserError(f"prefix_weights: {len(self.prefix_weights)} weights for {n_prefixes} prefixes")
        self.memory: GradientMemory | None = None

    def reuse_gradient_memory(self) -> None:
        """Write weight gradients to the same memory in every step: for training loops, see `GradientMemory`."""
        self.memory = GradientMemory()

    def choose(self, xc: Tensor) -> Chosen:
        """Return the codes of a training batch of centred inputs `(B, D_in)`, without gradient."""
        raise NotImplementedError

    def objective(self, x: Tensor, target: Tensor | None = None) -> Objective:
        """See `SAE.objective`."""
        with torch.autocast(x.device.type, enabled=False):  # comparisons and Adam need the precision of the weights
            return self._objective(x.to(self.w_enc.dtype), self.targets(x, target))

    def _objective(self, x: Tensor, target: Tensor) -> Objective:
        with torch.no_grad():
            xc = self.centre(x)
            codes, n_tokens = self.choose(xc)
            dead = self._dead_codes(xc)
            counts = torch.bincount(codes.latents, minlength=self.n_latents)
            self.dead.update(counts, n_tokens)
        layout = Layout(centred=not self.is_transcoder, prefixes=self.prefixes, memory=self.memory)
        outputs, _, from_dead = reconstruct(x, self.weights, codes, layout, dead)  # (G, B, D_out)
        outputs = outputs + self.skip(x)
        weight = per_token(x, n_tokens)
        losses = torch.stack([F.mse_loss(output, target, reduction="sum") for output in outputs]) * weight  # (G,)
        aux = losses.new_zeros(())
        if dead:
            aux = aux_loss(target - outputs[-1], from_dead) * self.aux_weight
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
