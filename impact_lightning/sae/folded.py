"""A trained dictionary as plain tensors: raw activations in, codes and raw reconstructions out."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.results import Constant
from impact_lightning.sae.topk import largest_of_row
from impact_lightning.types import UserError

Architecture = Literal["standard", "topk", "jumprelu", "gated"]
NEEDS: dict[Architecture, set[str]] = {
    "standard": set(),
    "topk": {"k"},
    "jumprelu": {"threshold"},
    "gated": {"r_mag", "b_mag"},
}


@dataclass(frozen=True)
class FoldedSAE:
    """A dictionary at inference, without normalisation, training state or tape.

    Args:
        architecture: What makes codes of pre-activations; BatchTopK and Matryoshka are `jumprelu` with one threshold.
        w_enc: Encoder `(F, D)`.
        b_enc: Its bias `(F,)`; of a gated dictionary, that of the gate.
        w_dec: Decoder `(F, D_out)`.
        b_dec: Its bias `(D_out,)`.
        threshold: `(F,)`, 0 or larger; a pre-activation on it is off.
        k: Active latents per token.
        r_mag: Logarithm of what a gated dictionary multiplies magnitudes with, `(F,)`.
        b_mag: Bias of its magnitudes, `(F,)`.
        w_skip: What a transcoder adds, `(D_out, D)`.
        is_transcoder: Whether the output is another activation than the input.
        centred: Whether `b_dec` is taken off the input.
        metadata: Whatever describes the dictionary: model, site, token set, ...
    """

    architecture: Architecture
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    k: int | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    w_skip: Tensor | None = None
    is_transcoder: bool = False
    centred: bool = True
    metadata: dict[str, Constant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        if self.architecture not in get_args(Architecture):
            raise UserError(f"architecture: {self.architecture!r} is none of {', '.join(get_args(Architecture))}")
        given = {name for name in ("threshold", "k", "r_mag", "b_mag") if getattr(self, name) is not None}
        if given != NEEDS[self.architecture]:
            raise UserError(f"{self.architecture}: has {sorted(given)}, needs {sorted(NEEDS[self.architecture])}")
        for name, shape in self._shapes().items():
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != shape:
                raise UserError(f"{name}: its shape is {tuple(tensor.shape)} and should be {shape}")
            if tensor is not None and not tensor.isfinite().all():
                raise UserError(f"{name}: not all values are finite")
        if self.threshold is not None and bool((self.threshold < 0).any()):
            raise UserError("threshold: some are below 0")
        if self.k is not None and not 1 <= self.k <= len(self.w_enc):
            raise UserError(f"k: {self.k} is not between 1 and {len(self.w_enc)} latents")
        if self.is_transcoder and self.centred:
            raise UserError("centred: the bias of a transcoder's output cannot be taken off its input")
        if not self.is_transcoder and self.w_skip is not None:
            raise UserError("w_skip: only a transcoder has one")

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        if self.w_enc.dim() != 2:
            raise UserError(f"w_enc: its shape is {tuple(self.w_enc.shape)} and should have two sides")
        n_latents, d_in = self.w_enc.shape
        d_out = self.b_dec.numel() if self.is_transcoder else d_in
        per_latent = dict.fromkeys(("b_enc", "threshold", "r_mag", "b_mag"), (n_latents,))
        return {
            "w_enc": (n_latents, d_in),
            "w_dec": (n_latents, d_out),
            "b_dec": (d_out,),
            "w_skip": (d_out, d_in),
            **per_latent,
        }

    def encode(self, x: Tensor) -> Tensor:
        """Return codes, `(..., D) -> (..., F)`."""
        z = F.linear(x - self.b_dec if self.centred else x, self.w_enc, self.b_enc)
        if self.threshold is not None:
            return z.relu() * (z > self.threshold)
        if self.k is not None:
            rows = z.flatten(0, -2)  # (..., F) -> (N, F)
            return (rows * largest_of_row(rows, self.k)).view_as(z)
        if self.r_mag is not None and self.b_mag is not None:
            magnitude = self.r_mag.exp() * (z - self.b_enc) + self.b_mag
            return magnitude.relu() * (z > 0)
        return z.relu()

    def decode(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the reconstruction `(..., F) -> (..., D_out)`; a skip connection needs the input as well."""
        output = codes @ self.w_dec + self.b_dec
        if self.w_skip is None:
            return output
        if x is None:
            raise UserError("decode: a transcoder with a skip connection needs its input too")
        return output + F.linear(x, self.w_skip)


def fold_normalisation(
    sae: FoldedSAE, scale: float, mean: Tensor, *, scale_out: float | None = None, mean_out: Tensor | None = None
) -> FoldedSAE:
    """Return the dictionary for raw activations, of one that was trained on `scale · (x − mean)`.

    Args:
        sae: The dictionary as it was trained.
        scale: What its input was multiplied with.
        mean: What was taken off its input before, `(D,)`.
        scale_out: The same for the output of a transcoder.
        mean_out: The same for the output of a transcoder, `(D_out,)`.
    """
    if sae.is_transcoder != (scale_out is not None and mean_out is not None):
        raise UserError("scale_out, mean_out: a transcoder needs both, an autoencoder takes neither")
    s_in, s_out = scale, scale if scale_out is None else scale_out
    mu_in, mu_out = mean, mean if mean_out is None else mean_out
    w_enc = s_in * sae.w_enc
    b_dec = sae.b_dec / s_out + mu_out
    w_skip = None if sae.w_skip is None else s_in / s_out * sae.w_skip
    return replace(
        sae,
        w_enc=w_enc,
        # W_enc (s (x − μ) − b_dec) is s W_enc (x − b_dec / s − μ), so that only b_dec moves where it is subtracted
        b_enc=sae.b_enc if sae.centred else sae.b_enc - w_enc @ mu_in,
        w_dec=sae.w_dec / s_out,
        b_dec=b_dec if w_skip is None else b_dec - w_skip @ mu_in,
        w_skip=w_skip,
    )


def fold_decoder_norms(sae: FoldedSAE) -> FoldedSAE:
    """Return the dictionary with decoder rows of unit length: codes grow by what rows lose, and outputs stay."""
    norms = torch.linalg.vector_norm(sae.w_dec, dim=1)  # (F,)
    if not (norms > 0).all():
        raise UserError(f"w_dec: row {int((norms == 0).nonzero()[0])} is zero and cannot have unit length")
    if sae.k is not None and not torch.allclose(norms, norms[0].expand_as(norms), rtol=1e-4):
        raise UserError("w_dec: TopK selects by size, and other latents would win; its rows must have one length")
    return scale_codes(sae, norms)


def scale_codes(sae: FoldedSAE, by: Tensor) -> FoldedSAE:
    """Return the dictionary with codes that are `by` `(F,)` times as large, and decoder rows that much shorter."""
    return replace(  # r_mag is a factor and stays
        sae,
        w_enc=sae.w_enc * by[:, None],
        b_enc=sae.b_enc * by,
        w_dec=sae.w_dec / by[:, None],
        threshold=None if sae.threshold is None else sae.threshold * by,
        b_mag=None if sae.b_mag is None else sae.b_mag * by,
    )
