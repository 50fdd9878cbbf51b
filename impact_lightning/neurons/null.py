"""Labels without meaning: the null of every measure that looks at labels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from impact_lightning.metrics.label_purity import permuted_labels
from impact_lightning.neurons.layers import Layer

MOST = 1024  # units whose nulls are measured: their mean is known to a thirtieth of their spread


class Labels:
    """Labels by row of the data set, and the same labels permuted among the images.

    Args:
        true: Labels, `(N,)`.
        seed: Seed of the permutation.
        read: How many images are read, the first of them; only among these labels are permuted. All by default.
    """

    def __init__(self, true: Tensor, seed: int, read: int | None = None) -> None:
        self.true = true
        self.read = len(true) if read is None else read
        self.permuted = torch.cat([permuted_labels(true[: self.read], seed=seed), true[self.read :]])

    def without_meaning(self, rows: Tensor) -> Tensor:
        """Return the permuted labels of some images: the same ones on any number of ranks and in any order."""
        return self.permuted[rows.cpu()].to(rows.device)


def other_classes(n_classes: int, among: Tensor, seed: int) -> Tensor:
    """Return another class for each class, `(C,)`: a random cycle through some of them; of a single one itself.

    Args:
        n_classes: Number of classes.
        among: The classes that may be another, `(n,)`; for each that may not be, one of these.
        seed: Seed of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = among[torch.randperm(len(among), generator=generator)]
    other = (
        order[torch.randint(len(order), (n_classes,), generator=generator)] if len(order) else torch.arange(n_classes)
    )
    other[order] = order.roll(-1)
    return other


def null_units(layers: Sequence[Layer]) -> Tensor:
    """Return the units whose nulls are measured: all of small layers, of others as many each, spread evenly."""
    room, chosen = MOST, {}
    for done, layer in enumerate(sorted(layers, key=lambda layer: layer.n_units)):
        n = min(layer.n_units, max(1, room // (len(layers) - done)))
        chosen[layer.units] = layer.units + torch.arange(n) * layer.n_units // n
        room -= n
    return torch.cat([chosen[layer.units] for layer in layers])


def first_of_class(labels: Tensor, n: int) -> Tensor:
    """Return which images `(N,)` are among the first `n` of their class."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    start = torch.searchsorted(ordered, ordered)  # where its class begins
    chosen = torch.empty(len(labels), dtype=torch.bool)
    chosen[order] = torch.arange(len(labels)) - start < n
    return chosen
