"""Top maps: the images that drive each latent most, and how much it fires on every token of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from impact_lightning.metrics.top_samples import Samples, TopSamples


class Maps(NamedTuple):
    """The strongest images of each latent, in descending order."""

    samples: Samples  # (F, k) each
    map: Tensor  # (F, k, t) float16, the activation on each token; 0 in free places


class TopMaps(TopSamples):
    """`TopSamples` with the activation of the latent on every kept token of each of its images.

    All tokens of an image must come in one batch. Memory is bounded: F·k·t half-precision numbers.

    Args:
        n_latents: Number F of latents.
        n_tokens: Kept tokens t of each image.
        k: Images per latent.

    Example:
        >>> metric = TopMaps(n_latents=1, n_tokens=2, k=2)
        >>> metric.update(torch.tensor([[[1.0], [5.0]], [[4.0], [0.0]]]), images=torch.tensor([7, 8]))
        >>> metric.compute().samples.image.tolist(), metric.compute().map.tolist()
        ([[7, 8]], [[[1.0, 5.0], [4.0, 0.0]]])
    """

    held: Tensor
    maps: Tensor

    def __init__(self, n_latents: int, n_tokens: int, k: int = 16) -> None:
        super().__init__(n_latents, k)
        # Of several ranks each has its own maps: they are stacked, and `compute` looks up whose image has won a place.
        self.add_state("held", torch.full((n_latents, k), -1), dist_reduce_fx=None)  # the image of each map
        self.add_state("maps", torch.zeros(n_latents, k, n_tokens, dtype=torch.float16), dist_reduce_fx=None)

    def update(self, activations: Tensor, images: Tensor, tokens: Tensor | None = None) -> None:
        """Add all tokens of some images.

        Args:
            activations: `(B, t, F)`.
            images: The images, `(B,)`.
            tokens: Where each token is in its image, `(B, t)`; None counts from 0.
        """
        super().update(activations, images, tokens)
        image = self.best[1].long()  # (F, k)
        changed = (image != self.held).any(1).nonzero().squeeze(1)  # (m,)
        place, is_held = _places(image[changed], self.held[changed])
        old = self.maps[changed]  # (m, k, t)
        maps = old.gather(1, place[..., None].expand_as(old)) * is_held[..., None]
        latent, slot = (~is_held & (image[changed] >= 0)).nonzero(as_tuple=True)
        order = images.argsort()
        row = order[torch.searchsorted(images[order], image[changed[latent], slot])]
        maps[latent, slot] = activations[row, :, changed[latent]].half()  # (q, t)
        self.maps[changed], self.held[changed] = maps, image[changed]

    def compute(self) -> Maps:  # type: ignore[override]  # more than the samples
        """Return the samples and their maps."""
        samples = super().compute()
        n_latents, k, n_tokens = self.maps.shape[-3:]
        maps = self.maps.new_zeros(n_latents, k, n_tokens)
        for held, own in zip(self.held.view(-1, n_latents, k), self.maps.view(-1, *maps.shape), strict=True):
            place, is_held = _places(samples.image, held)
            maps += own.gather(1, place[..., None].expand_as(own)) * is_held[..., None]  # an image is of one rank
        return Maps(samples, maps)


def _places(wanted: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each wanted image stands among the held ones of its latent, `(m, k)`, and whether it is there."""
    same = (wanted[:, :, None] == held[:, None, :]) & (wanted[:, :, None] >= 0)  # (m, k, k)
    return same.int().argmax(2), same.any(2)
