"""Sparse autoencoders and transcoders: one interface for every variant."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from impact_lightning.sae.dead_latents import DeadLatents
from impact_lightning.sae.reconstruction import Weights
from impact_lightning.types import UserError


class Objective(NamedTuple):
    """What a training batch gives: the loss to differentiate, and its parts.

    Ranks average gradients, so each rank's numbers are its tokens' sums times the number of ranks, over all tokens:
    their mean over ranks is the mean over all tokens, also where ranks have different numbers of tokens.
    """

    loss: Tensor  # () with gradient
    reconstruction: Tensor  # () squared error, summed over D, mean over tokens
    penalty: Tensor  # () the variant's own term, weighted
    aux: Tensor  # () AuxK, weighted
    l0: Tensor  # () active latents per token
    output: Tensor  # (B, D_out) reconstruction, without gradient
    counts: Tensor  # (F,) int64: how often each latent fired on this rank


class SAE(nn.Module, ABC):
    """A dictionary of features: `codes = encode(x)`, and `decode(codes)` is close to `x`, or to another target.

    Args:
        d_in: Width of the input.
        n_latents: Number of features.
        d_out: Width of the target of a transcoder; None makes an autoencoder.
        skip: Whether a transcoder adds a linear map of its input.
        dead_after: Tokens of silence after which a latent counts as dead; None takes ten million, or one per cent of
            the training if that is less.
    """

    unit_decoder = True  # rows of the decoder have unit length
    k_factor = 1.0  # a schedule may change k, for kinds that have one
    penalty_factor = 1.0  # and warm up the penalty, for kinds that have one

    def __init__(
        self, d_in: int, n_latents: int, *, d_out: int | None = None, skip: bool = False, dead_after: int | None = None
    ) -> None:
        super().__init__()
        if skip and d_out is None:
            raise UserError("skip: only transcoders have a skip connection; set d_out as well")
        if n_latents < 1:
            raise UserError(f"a dictionary needs latents, got {n_latents} for {d_in} channels: raise model.expansions")
        if dead_after is not None and dead_after < 1:
            raise UserError(f"dead_after: {dead_after} silent tokens must be at least 1")
        self.is_transcoder = d_out is not None
        d_out = d_in if d_out is None else d_out
        rows = F.normalize(torch.randn(n_latents, d_out), dim=1)
        self.w_dec = Parameter(rows)
        self.w_enc = Parameter(rows.clone() if d_in == d_out else F.normalize(torch.randn(n_latents, d_in), dim=1))
        self.b_enc = Parameter(torch.zeros(n_latents))
        self.b_dec = Parameter(torch.zeros(d_out))
        self.w_skip = Parameter(torch.zeros(d_out, d_in)) if skip else None
        self.dead = DeadLatents(n_latents, dead_after)

    @property
    def weights(self) -> Weights:
        """The parameters that every variant has."""
        return Weights(self.w_enc, self.b_enc, self.w_dec, self.b_dec)

    @property
    def n_latents(self) -> int:
        """Number of features."""
        return len(self.w_dec)

    def centre(self, x: Tensor) -> Tensor:
        """Return what the encoder multiplies: an autoencoder takes off the decoder's bias."""
        x = x.to(self.w_enc.dtype)
        return x if self.is_transcoder else x - self.b_dec

    def pre_activations(self, x: Tensor) -> Tensor:
        """Return `z`, `(..., D_in) -> (..., F)`."""
        with torch.autocast(x.device.type, enabled=False):  # what is compared keeps the precision of the weights
            return F.linear(self.centre(x), self.w_enc, self.b_enc)

    @abstractmethod
    def activate(self, z: Tensor) -> Tensor:
        """Return the codes of pre-activations at inference: each token's depend on that token alone."""

    def encode(self, x: Tensor) -> Tensor:
        """Return codes, `(..., D_in) -> (..., F)`."""
        return self.activate(self.pre_activations(x))

    def decode(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the reconstruction of codes, `(..., F) -> (..., D_out)`; a skip connection needs the input as well."""
        with torch.autocast(codes.device.type, enabled=False):  # measures do not depend on the trainer's precision
            return codes @ self.w_dec + self.b_dec + self.skip(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction, `(..., D_in) -> (..., D_out)`."""
        return self.decode(self.encode(x), x)

    def skip(self, x: Tensor | None) -> Tensor | float:
        """Return the linear part of a transcoder, 0 without one."""
        if self.w_skip is None:
            return 0.0
        if x is None:
            raise UserError("decode: a transcoder with a skip connection needs its input too")
        return F.linear(x.to(self.w_skip.dtype), self.w_skip)

    @abstractmethod
    def objective(self, x: Tensor, target: Tensor | None = None) -> Objective:
        """Return the loss of a training batch and count which latents fired.

        Args:
            x: Inputs `(B, D_in)`.
            target: What a transcoder should give, `(B, D_out)`; an autoencoder has none.
        """

    def targets(self, x: Tensor, target: Tensor | None) -> Tensor:
        """Return what the output should be."""
        if self.is_transcoder != (target is not None):
            raise UserError("target: a transcoder needs one, an autoencoder takes none")
        return (x if target is None else target).to(self.w_dec.dtype)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return parameters for `DictionaryAdam`, the decoder first."""
        others = [weight for weight in self.parameters() if weight is not self.w_dec]
        return [{"params": [self.w_dec], "unit_rows": self.unit_decoder}, {"params": others}]
