"""Label purity: whether the images that drive a latent most share a label."""

from typing import NamedTuple

import torch
from torch import Tensor

from impact_lightning.metrics.ratio import ratio
from impact_lightning.metrics.top_samples import Samples
from impact_lightning.types import UserError


class Purity(NamedTuple):
    """Per latent, float64; nan where a latent has too few samples."""

    entropy: Tensor  # (F,) entropy of its samples' labels, in nats
    purity: Tensor  # (F,) share of the most frequent label
    label: Tensor  # (F,) int64, that label, the lower one of two; -1 where nan


def label_purity(
    samples: Samples, labels: Tensor, n_classes: int, *, weighted: bool = False, at_least: int = 10
) -> Purity:
    """Return label entropy and purity of each latent's top samples.

    With `p_c` the share of label c among a latent's samples, entropy is `-sum_c p_c ln p_c` and purity `max_c p_c`.

    Args:
        samples: The strongest images of each latent.
        labels: Labels `(n_images,)` of all images, by image id.
        n_classes: Number of classes.
        weighted: Whether a sample counts by its activation, rather than as one.
        at_least: Latents with fewer samples have no purity.

    Example:
        >>> one = torch.zeros(1, 2)
        >>> top = Samples(value=one + 1, image=torch.tensor([[0, 1]]), token=one.long())
        >>> label_purity(top, torch.tensor([3, 3]), n_classes=4, at_least=2).purity.item()
        1.0
    """
    is_taken = samples.image >= 0  # (F, k)
    if len(labels) <= samples.image.max():
        raise UserError(f"labels: {len(labels)} labels, but the samples have image {int(samples.image.max())}")
    of_sample = labels[samples.image.clamp_min(0)]  # (F, k)
    weight = (samples.value.double() if weighted else torch.ones_like(samples.value, dtype=torch.float64)).clamp_min(0)
    mass = torch.zeros(len(weight), n_classes, dtype=torch.float64, device=weight.device)
    mass.scatter_add_(1, of_sample, torch.where(is_taken, weight, 0.0))  # (F, C)
    share = ratio(mass, mass.sum(1, keepdim=True))  # (F, C)
    share = torch.where(is_taken.sum(1, keepdim=True) >= at_least, share, torch.nan)
    purity, label = share.max(1)
    return Purity(torch.special.entr(share).sum(1), purity, torch.where(purity.isnan(), -1, label))


def permuted_labels(labels: Tensor, *, seed: int = 0) -> Tensor:
    """Return the labels `(n_images,)` in random order: their purity is the null of `label_purity`.

    Labels are permuted by image id, so that the null is the same for any order and number of ranks.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return labels[order.to(labels.device)]
