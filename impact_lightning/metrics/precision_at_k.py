"""Precision at k: which share of the images that drive a unit most is of one class."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.class_sums import check_finite
from impact_lightning.metrics.ratio import ratio
from impact_lightning.types import UserError

ENTRIES_AT_A_TIME = 2**22  # each part raises the bar for the next: memory stays small, and few units are left to sort
LOW = 0xFFFFFFFF  # the lower half of a key
FREE = -(2**63)  # the key of a free place; a finite activation has a larger one


class Precision(NamedTuple):
    """Precision of units, and the images that it is of."""

    precision: Tensor  # (K,) float64, the largest share of a class; nan where there is no image
    best: Tensor  # (K,) int64, that class, the lower one of two; -1 where nan
    null: Tensor  # (K,) float64, precision of the same images under permuted labels; nan where there are none
    images: Tensor  # (K, k) int64 in descending order of activation, the lower image first of two; -1 in free places
    values: Tensor  # (K, k) float32, the activations; nan in free places


class PrecisionAtK(Metric):
    """Largest share of one class among the k images with the largest activations of each unit.

    The same for any order, batch size and number of ranks: ties go to the lower image. Where fewer than k images were
    seen, the share is of those. An image must come once, as in an evaluation: each time it comes takes a place.
    Activations are compared in float32. Labels are permuted by image, so that the null too is the same for any order.

    Args:
        n_units: Number K of units.
        labels: Label of each image `(N,)`, by number of the image.
        k: Images per unit.
        permuted: The same labels in random order `(N,)`, for the null.

    Example:
        >>> metric = PrecisionAtK(n_units=1, labels=torch.tensor([5, 3, 3]), k=2)
        >>> metric.update(torch.tensor([[9.0], [2.0], [4.0]]), images=torch.tensor([2, 0, 1]))
        >>> metric.compute().images.tolist(), metric.compute().precision.item(), metric.compute().best.item()
        ([[2, 1]], 1.0, 3)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    best: Tensor
    labels: Tensor
    permuted: Tensor | None

    def __init__(self, n_units: int, labels: Tensor, k: int = 100, *, permuted: Tensor | None = None) -> None:
        super().__init__()
        if (labels < 0).any():
            raise UserError(f"labels: {int(labels.min())} is no class")
        if permuted is not None and len(permuted) != len(labels):
            raise UserError(f"permuted: {len(permuted)} labels, but there are {len(labels)} images")
        self.register_buffer("labels", labels.long(), persistent=False)
        self.register_buffer("permuted", None if permuted is None else permuted.long(), persistent=False)
        self.add_state("best", torch.full((n_units, k), FREE), dist_reduce_fx=merge_keys)  # the smallest comes first

    def update(self, activations: Tensor, images: Tensor) -> None:
        """Add one pooled activation per image and unit `(B, K)`, and the numbers of the images `(B,)`."""
        is_other = (images < 0) | (images >= len(self.labels))
        if is_other.any():
            raise UserError(f"images: {int(images[is_other][0])} is none of the {len(self.labels)} that have labels")
        rows = activations.float()
        check_finite(rows)
        n_rows = max(1, ENTRIES_AT_A_TIME // activations.shape[1])
        for row, image in zip(rows.split(n_rows), images.split(n_rows), strict=True):
            self._add(_keys(row, image))

    def _add(self, keys: Tensor) -> None:
        is_stronger = (keys > self.best[:, 0]).any(0)  # (B, K) -> (K,)
        if is_stronger.all():
            self.best = _largest(torch.cat([self.best, keys.T], 1), self.best.shape[1])
        else:  # after some batches most units
            unit = is_stronger.nonzero().squeeze(1)  # (m,)
            both = torch.cat([self.best[unit], keys[:, unit].T], 1)  # (m, k + B)
            self.best[unit] = _largest(both, self.best.shape[1])

    def compute(self) -> Precision:
        """Return precision, null and images."""
        keys = self.best.sort(1, descending=True).values  # (K, k)
        is_taken = keys != FREE
        image, value = _entries(keys)
        at = torch.where(is_taken, image, 0)
        precision, best = _share(torch.where(is_taken, self.labels[at], -1))
        null = torch.full_like(precision, torch.nan)
        if self.permuted is not None:
            null, _ = _share(torch.where(is_taken, self.permuted[at], -1))
        return Precision(
            precision, best, null, torch.where(is_taken, image, -1), torch.where(is_taken, value, torch.nan)
        )

    def plot(self, val: Precision | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot precision of the units in descending order, and the null where there is one."""
        import matplotlib.pyplot as plt

        result = self.compute() if val is None else val
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        for name, values in (("units", result.precision), ("permuted labels", result.null)):
            axes.plot(values[~values.isnan()].sort(descending=True).values.tolist(), label=name)
        axes.set(xlabel="units, largest first", ylabel=f"precision at {self.best.shape[1]}")
        axes.legend()
        return figure, axes


def merge_keys(states: Tensor) -> Tensor:
    """Return the largest keys of the union, `(R, K, k) -> (K, k)`."""
    return _largest(states.movedim(0, 1).flatten(1), states.shape[2])  # (R, K, k) -> (K, R·k)


def _largest(keys: Tensor, k: int) -> Tensor:
    """Return the k largest keys of each row `(K, n) -> (K, k)`, the smallest of them first, the others in any order."""
    if keys.is_cuda:
        return keys.topk(k, dim=1).values.flip(1)
    keys = keys.contiguous()
    keys.numpy().partition(keys.shape[1] - k, axis=1)  # in place; a tenth of the time of topk
    return keys[:, -k:].contiguous()


def _keys(activations: Tensor, images: Tensor) -> Tensor:
    """Return integers `(B, K)` in the order of float32 activations `(B, K)`, for equal ones in that of lower images."""
    bits = (activations + 0.0).view(torch.int32).long()  # adding makes -0 and 0 the same
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of negative numbers, the larger has the smaller bits
    return (ordered << 32) | (LOW - images.long())[:, None]


def _entries(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images and the activations of keys."""
    ordered = keys >> 32
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return LOW - (keys & LOW), bits.int().view(torch.float32)


def _share(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of the most frequent label of each row `(K, k)` among those that are not -1, and that label."""
    labels = labels.sort(1).values
    place = torch.arange(labels.shape[1], device=labels.device)
    is_first = torch.ones_like(labels, dtype=torch.bool)  # of its label
    is_first[:, 1:] = labels.diff(dim=1) != 0
    start = torch.where(is_first, place, 0).cummax(1).values
    count, at = torch.where(labels >= 0, place - start + 1, 0).max(1)  # the first of equal counts: the lower label
    best = labels.gather(1, at[:, None]).squeeze(1)  # -1 where all are
    return ratio(count, (labels >= 0).sum(1)), best
