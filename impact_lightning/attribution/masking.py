"""Maps by masking: what the score of the class does while parts of an image are hidden."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from impact_lightning.attribution.method import (
    Method,
    admit,
    differentiating,
    grid_size,
    outside_inference,
    patch_sums,
    refuse_non_finite,
)
from impact_lightning.attribution.scores import Score, score
from impact_lightning.types import UserError

AT_ONCE = 64  # masked images of one forward


@dataclass(frozen=True)
class RISE(Method):
    """RISE (Petsiuk et al. 2018, arXiv 1806.07421): mean of random masks, weighted by the probability of the class.

    A mask is a coarse grid of zeros and ones, bilinearly enlarged and randomly shifted; it multiplies the normalised
    image, so that what is hidden turns to mean grey. The map of a patch is the mean over its pixels. All images see the
    same masks.

    A patch is divided by how much of it these masks show, `sum_m p(class) mask_m / sum_m mask_m`, and not by what is
    expected of that, as published: with some hundred masks the difference between both is larger than what a model has
    to say, and maps of a model and of a random one are alike.

    Args:
        masks: Number of masks, each a forward; the paper takes 4000 for ImageNet.
        cells: Cells of the coarse grid along a side.
        density: Probability of a one.
        seed: Seed of the masks.
        at_once: Masked images of one forward.
    """

    masks: int = 1000
    cells: int = 7
    density: float = 0.5
    seed: int = 0
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        """Refuse what makes no masks."""
        if min(self.masks, self.cells, self.at_once) < 1 or not 0 < self.density <= 1:
            raise UserError(
                f"RISE: masks {self.masks}, cells {self.cells}, at_once {self.at_once} must be at least 1, and "
                f"density {self.density} above 0 and at most 1"
            )

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        model = admit(model, images, targets)
        gh, gw = grid_size(model, images)
        n_pixels = patch_sums(model, torch.ones_like(images[:1, 0]))  # of each patch, fewer at padded borders
        maps = images.new_zeros(len(images), gh, gw, dtype=torch.float64)
        shown = torch.zeros_like(maps[0])
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.masks, self.at_once):
            n = min(self.at_once, self.masks - start)
            masks = torch.stack([self._mask(images.shape[-2:], generator) for _ in range(n)]).to(images)
            patches = (patch_sums(model, masks) / n_pixels).double()  # (M, gh, gw)
            shown += patches.sum(0)
            for i, image in enumerate(images):
                scores = scores_of(model, image * masks[:, None], targets[i].expand(n), "probability")
                maps[i] += torch.einsum("m,mhw->hw", scores, patches)
        covered = torch.where(shown == 0, 1.0, shown)  # a patch that no mask shows has no relevance
        return refuse_non_finite((maps / covered).to(images.dtype), "the map")

    def _mask(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return one mask `(h, w)`: one cell more than fits, so that a shift by up to a cell leaves no gap."""
        coarse = (torch.rand(1, 1, self.cells, self.cells, generator=generator) < self.density).float()
        cell = [-(-side // self.cells) for side in size]
        y, x = (int(torch.randint(side, (), generator=generator)) for side in cell)
        fine = F.interpolate(coarse, size=[(self.cells + 1) * side for side in cell], mode="bilinear")
        return fine[0, 0, y : y + size[0], x : x + size[1]]


@dataclass(frozen=True)
class Occlusion(Method):
    """By how much the score of the class falls if a patch turns to mean grey (zero after normalisation).

    Args:
        score: What falls: the softmax probability or the logit of the class, or another of the scores of curves.
        at_once: Occluded images of one forward.
    """

    score: Score = "probability"
    at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        """Refuse empty forwards."""
        if self.at_once < 1:
            raise UserError(f"Occlusion: at_once {self.at_once} must be at least 1")

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        model = admit(model, images, targets)
        (gh, gw), (h, w) = grid_size(model, images), images.shape[-2:]
        rows = torch.arange(h, device=images.device) // model.patch_embed.patch_size[0]
        columns = torch.arange(w, device=images.device) // model.patch_embed.patch_size[1]
        patch = rows[:, None] * gw + columns  # (h, w) number of each pixel's patch
        clean = scores_of(model, images, targets, self.score)
        hidden = torch.empty(len(images), gh * gw, dtype=clean.dtype, device=images.device)
        for part in torch.arange(len(images) * gh * gw, device=images.device).split(self.at_once):
            i, p = part // (gh * gw), part % (gh * gw)
            occluded = images[i].masked_fill((patch == p[:, None, None])[:, None], 0)
            hidden[i, p] = scores_of(model, occluded, targets[i], self.score)
        falls = (clean[:, None] - hidden).unflatten(1, (gh, gw)).to(images.dtype)
        return refuse_non_finite(falls, "the map")


def scores_of(model: VisionTransformer, images: Tensor, targets: Tensor, kind: Score) -> Tensor:
    """Return the score of each image's own class, float64 `(B,)`."""
    with differentiating(images), torch.no_grad():
        logits = refuse_non_finite(model(outside_inference(images)), "the logits")
        return score(logits, kind, outside_inference(targets))
