"""Small dictionaries of every kind, with random weights."""

import torch
from torch import Tensor

from impact_lightning.sae.folded import FoldedSAE
from impact_lightning.sae.saelens import KINDS

D_IN, D_OUT, LATENTS = 6, 4, 24
ALL = list(KINDS)


def dictionary(name: str) -> FoldedSAE:
    """Return a dictionary, called as in `cfg.json`."""
    kind = KINDS[name]
    generator = torch.Generator().manual_seed(0)
    d_out = D_OUT if kind.is_transcoder else D_IN

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return FoldedSAE(
        kind.architecture,
        w_enc=draw(LATENTS, D_IN),
        b_enc=draw(LATENTS),
        w_dec=draw(LATENTS, d_out),
        b_dec=draw(d_out),
        threshold=draw(LATENTS).abs() if kind.architecture == "jumprelu" else None,
        k=3 if kind.architecture == "topk" else None,
        r_mag=draw(LATENTS) / 2 if kind.architecture == "gated" else None,
        b_mag=draw(LATENTS) if kind.architecture == "gated" else None,
        w_skip=draw(d_out, D_IN) if kind.has_skip else None,
        is_transcoder=kind.is_transcoder,
        centred=not kind.is_transcoder,
        metadata={"model_name": "vit", "site": "blocks.0.mlp_out", "k": 3},
    )


def inputs(n: int = 50) -> Tensor:
    """Return activations `(N, D)`."""
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1))
