"""Resampling: other images, from which nodes that are off take their values."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Donor = Literal["any", "same", "other"]


class Resampled(NamedTuple):
    """A node that is off has the value that it has on another image, in the whole model.

    Args:
        donor: Whether that is any image of the task, one of the same side or one of another side.
        seed: Seed of the draw.
    """

    donor: Donor
    seed: int


def donors(targets: Tensor, how: Resampled) -> Tensor:
    """Return for each image the place of another one, `(N,) -> (N,)`; only a side of one image is its own donor.

    Args:
        targets: The side of each image.
        how: Which images may be drawn.
    """
    generator = torch.Generator().manual_seed(how.seed)
    targets = targets.cpu()
    found = torch.empty_like(targets)
    if how.donor == "other":
        for side in targets.unique():
            own, others = (targets == side).nonzero().flatten(), (targets != side).nonzero().flatten()
            found[own] = others[torch.randint(len(others), (len(own),), generator=generator)]
        return found
    groups = [targets == side for side in targets.unique()] if how.donor == "same" else [targets >= 0]
    for group in groups:
        of = group.nonzero().flatten()
        order = of[torch.randperm(len(of), generator=generator)]  # a ring: each gives to the next
        found[order] = order.roll(1)
    return found


def donors_of_step(places: Tensor, step: int) -> Tensor:
    """Return for each image of a step the place of another one of its circuit, `(P, b) -> (P, b)`."""
    b = places.shape[1]
    return places.roll(1 + step % max(1, b - 1), dims=1)
