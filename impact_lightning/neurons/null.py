"""Labels without meaning: the null of every measure that looks at labels."""

import numpy as np
import torch
from torch import Tensor

from impact_lightning.data.module import ImageDataModule, Split
from impact_lightning.metrics.label_purity import permuted_labels
from impact_lightning.types import UserError


def labels_of(data: ImageDataModule, split: Split) -> Tensor:
    """Return the labels of a split by row, `(N,)`; a stream does not know them in advance, and is refused."""
    images = data.split(split)
    labels = getattr(images, "labels", None)
    if labels is None:
        raise UserError(f"data: labels of {type(images).__name__} are not known before they are read")
    return torch.from_numpy(np.ascontiguousarray(labels, np.int64))


MOST = 1024  # units whose nulls are measured: their mean is known to a thirtieth of their spread


class Labels:
    """Labels by row of the data set, and the same labels permuted among the images.

    Args:
        true: Labels, `(N,)`.
        seed: Seed of the permutation.
    """

    def __init__(self, true: Tensor, seed: int) -> None:
        self.true = true
        self.permuted = permuted_labels(true, seed=seed)

    def without_meaning(self, rows: Tensor) -> Tensor:
        """Return the permuted labels of some images: the same ones on any number of ranks and in any order."""
        return self.permuted[rows.cpu()].to(rows.device)


def other_classes(n_classes: int, seed: int) -> Tensor:
    """Return another class for each class, `(C,)`: a random cycle through all of them; of a single class itself."""
    order = torch.randperm(n_classes, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(-1)
    return other


def null_units(n_units: int) -> Tensor:
    """Return the units whose measures are made under permuted labels too: all, or many of them spread evenly."""
    return torch.arange(n_units)[:: -(-n_units // MOST)]


def first_of_class(labels: Tensor, n: int) -> Tensor:
    """Return which images `(N,)` are among the first `n` of their class."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    start = torch.searchsorted(ordered, ordered)  # where its class begins
    chosen = torch.empty(len(labels), dtype=torch.bool)
    chosen[order] = torch.arange(len(labels)) - start < n
    return chosen
