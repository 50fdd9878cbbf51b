"""One dictionary among several that are trained in one pass: a sparse autoencoder, its site, and its scaling."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from impact_lightning.activations.batch import SiteStatistics
from impact_lightning.metrics.cosine import MeanCosine
from impact_lightning.metrics.density import FiringDensity
from impact_lightning.metrics.fvu import FVU
from impact_lightning.metrics.l0 import L0
from impact_lightning.metrics.reconstruction_bias import ReconstructionBias
from impact_lightning.sae.autoencoder import SAE, Objective
from impact_lightning.sae.geometric_median import geometric_median
from impact_lightning.sae.scaling import Scaling, ScalingMode
from impact_lightning.types import UserError

SAEFactory = Callable[[int, int], SAE]  # (d_in, n_latents) -> a dictionary with every other setting given
Centre = Literal["mean", "geometric_median", "zero"]


class Inference(NamedTuple):
    """What a dictionary makes of rows of its site, as it does after training."""

    codes: Tensor  # (N, F) above the threshold
    output: Tensor  # (N, D_out) in the units of the site
    wanted: Tensor  # (N, D_out) what the output should be


class Dictionary(nn.Module):
    """A sparse autoencoder that reads one site, or a transcoder from one site to another.

    Args:
        sae: The dictionary itself.
        site: What it reads.
        target: What a transcoder gives; None for an autoencoder.
        widths: Channels of both.
        scaling: How activations are scaled before the dictionary sees them.
    """

    def __init__(
        self, sae: SAE, site: str, target: str | None, widths: Mapping[str, int], scaling: ScalingMode = "mean_norm"
    ) -> None:
        super().__init__()
        if target is not None and scaling == "layer_norm":
            raise UserError("scaling layer_norm: a transcoder cannot undo it, as that needs the activation it predicts")
        self.sae = sae
        self.site = site
        self.target = target
        self.scaling = Scaling(widths[site], scaling)
        self.target_scaling = None if target is None else Scaling(widths[target], scaling)
        n_latents, width = sae.w_dec.shape
        self.fvu, self.cosine, self.bias = FVU(width), MeanCosine(), ReconstructionBias()
        self.l0, self.density = L0(n_latents), FiringDensity(n_latents)

    @property
    def output_site(self) -> str:
        """The site that the output is of."""
        return self.site if self.target is None else self.target

    @property
    def output_scaling(self) -> Scaling:
        """The scaling of the output."""
        return self.scaling if self.target_scaling is None else self.target_scaling

    def fit(self, known: Mapping[str, tuple[SiteStatistics, Tensor]], centre: Centre) -> None:
        """Scale, and begin with the decoder's bias at a centre of the (scaled) output.

        Args:
            known: Statistics and some rows `(N, D)` of each site.
            centre: Which centre.
        """
        self.scaling.fit(*known[self.site])
        self.output_scaling.fit(*known[self.output_site])
        rows = self.output_scaling(known[self.output_site][1])
        if centre == "mean":
            self.sae.b_dec.data.copy_(rows.mean(0))
        elif centre == "geometric_median":
            self.sae.b_dec.data.copy_(geometric_median(rows))

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
    def infer(self, activations: Mapping[str, Tensor]) -> Inference:
        """Return codes and output as inference has them."""
        x, wanted = self.scaling(activations[self.site]), activations[self.output_site]
        codes = self.sae.encode(x)
        return Inference(codes, self.output_scaling.undo(self.sae.decode(codes, x), wanted), wanted)

    def replace(self, x: Tensor) -> Tensor:
        """Return the output for raw rows of the site, `(N, D) -> (N, D_out)`."""
        scaled = self.scaling(x)
        return self.output_scaling.undo(self.sae.decode(self.sae.encode(scaled), scaled), x)

    def measure(self, found: Inference) -> None:
        """Count a batch."""
        self.fvu.update(found.wanted, found.output)
        self.cosine.update(found.wanted, found.output)
        self.bias.update(found.wanted, found.output)
        self.l0.update(found.codes)
        self.density.update(found.codes)

    def collect(self) -> dict[str, float]:
        """Return the measures over all ranks, and start anew."""
        densities, fvu = self.density.compute(), self.fvu.compute()
        values = {
            "fvu": float(fvu["fvu"]),
            "ev": float(fvu["ev"]),
            "nmse_origin": float(fvu["nmse_origin"]),
            "cosine": float(self.cosine.compute()["cosine"]),
            "bias": float(self.bias.compute()["bias"]),
            "l0": float(self.l0.compute()["l0"]),
            "dead": float(densities.dead),
            "ultra_low": float(densities.ultra_low),
            "n": float(densities.n),
        }
        for metric in (self.fvu, self.cosine, self.bias, self.l0, self.density):
            metric.reset()
        return values
