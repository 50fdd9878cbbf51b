"""One dictionary among several that are trained in one pass: a sparse autoencoder, its site, and its scaling."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from impact_lightning.metrics.cosine import MeanCosine
from impact_lightning.metrics.density import FiringDensity
from impact_lightning.metrics.fvu import FVU
from impact_lightning.metrics.l0 import L0
from impact_lightning.sae.autoencoder import SAE, Objective
from impact_lightning.sae.scaling import Scaling

SAEFactory = Callable[[int, int], SAE]  # (d_in, n_latents) -> a dictionary with every other setting given


class Dictionary(nn.Module):
    """A sparse autoencoder that reads one site, or a transcoder from one site to another.

    Args:
        sae: The dictionary itself.
        site: What it reads.
        target: What a transcoder gives; None for an autoencoder.
        widths: Channels of both.
    """

    def __init__(self, sae: SAE, site: str, target: str | None, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.sae = sae
        self.site = site
        self.target = target
        self.scaling = Scaling(widths[site])
        self.target_scaling = None if target is None else Scaling(widths[target])
        n_latents, width = sae.w_dec.shape
        self.fvu, self.cosine = FVU(width), MeanCosine()
        self.l0, self.density = L0(n_latents), FiringDensity(n_latents)

    def inputs(self, activations: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return what the autoencoder reads and, for a transcoder, what it should give, both scaled."""
        x = self.scaling(activations[self.site])
        if self.target is None or self.target_scaling is None:
            return x, None
        return x, self.target_scaling(activations[self.target])

    def objective(self, activations: Mapping[str, Tensor]) -> Objective:
        """Return the loss of a training batch and its parts."""
        return self.sae.objective(*self.inputs(activations))

    @torch.no_grad()
    def measure(self, activations: Mapping[str, Tensor]) -> None:
        """Count a batch as inference sees it: codes above the threshold, activations in their own units."""
        x, _ = self.inputs(activations)
        codes = self.sae.encode(x)
        scaling = self.target_scaling or self.scaling
        output = scaling.undo(self.sae.decode(codes, x))
        wanted = activations[self.target or self.site]
        self.fvu.update(wanted, output)
        self.cosine.update(wanted, output)
        self.l0.update(codes)
        self.density.update(codes)

    def collect(self) -> dict[str, float]:
        """Return the measures over all ranks, and start anew."""
        densities, fvu = self.density.compute(), self.fvu.compute()
        values = {
            "fvu": float(fvu["fvu"]),
            "ev": float(fvu["ev"]),
            "nmse_origin": float(fvu["nmse_origin"]),
            "cosine": float(self.cosine.compute()["cosine"]),
            "l0": float(self.l0.compute()["l0"]),
            "dead": float(densities.dead),
            "n": float(densities.n),
        }
        for metric in (self.fvu, self.cosine, self.l0, self.density):
            metric.reset()
        return values
