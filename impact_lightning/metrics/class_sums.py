"""Class sums: the totals of every unit over the images of every class, from which selectivity is computed."""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio
from impact_lightning.types import UserError

Rectify = Literal["relu", "abs", "none"]
ENTRIES_AT_A_TIME = 2**18  # of a table: what is computed on the way stays in the cache
ROUNDING = 2.0**-51  # n terms of float64 round by less than n of these: what is smaller is no variance


class ClassSums(Metric):
    """Sums of activations and of their squares for each class and unit, and the number of images of each class.

    A base: subclasses only compute. Those with the same rectification and `squares` hold the same states, so that a
    `MetricCollection` adds each batch to one of them and shares it.

    Args:
        n_units: Number K of units.
        n_classes: Number C of classes.
        rectify: What is done to activations before they are summed: negative ones become 0, or positive, or stay.
        squares: Whether squares are summed too; variances need them, and they are half of the memory.

    Example:
        >>> metric = ClassSums(n_units=1, n_classes=2)
        >>> metric.update(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> metric.means().tolist(), metric.variances().tolist()
        ([[2.0], [5.0]], [[1.0], [0.0]])
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sums: Tensor
    squares: Tensor
    counts: Tensor
    rectification: Tensor

    def __init__(self, n_units: int, n_classes: int, *, rectify: Rectify = "none", squares: bool = True) -> None:
        super().__init__()
        if rectify not in get_args(Rectify):
            raise UserError(f"rectify: {rectify!r} is none of {', '.join(get_args(Rectify))}")
        self.rectify = rectify
        for name in ("sums", "squares") if squares else ("sums",):
            add_zeros(self, name, (n_classes, n_units), torch.float64)
        self.add_state("counts", torch.zeros(n_classes, dtype=torch.int64), dist_reduce_fx="sum")
        # never changes: a collection shares equal states, and those of unlike rectifications may begin equal
        kind = get_args(Rectify).index(rectify)
        self.add_state("rectification", torch.tensor(kind), dist_reduce_fx="max")

    def update(self, activations: Tensor, labels: Tensor) -> None:
        """Add one pooled activation per image and unit `(B, K)`, and the images' labels `(B,)`."""
        check_classes(activations, labels, len(self.counts))
        if activations.shape[1] != self.sums.shape[1]:
            raise UserError(f"activations: of {activations.shape[1]} units, but the metric has {self.sums.shape[1]}")
        x, labels = activations.double(), labels.long()
        if self.rectify != "none":
            x = x.clamp_min(0) if self.rectify == "relu" else x.abs()
        self.sums.index_add_(0, labels, x)
        if "squares" in self._defaults:
            self.squares.index_add_(0, labels, x * x)
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    def means(self) -> Tensor:
        """Return the mean of each class and unit `(C, K)`; nan for a class without images."""
        return ratio(self.sums, self.counts[:, None])

    def variances(self) -> Tensor:
        """Return the population variance of each class and unit `(C, K)`; nan for a class without images."""
        return variances(self.sums, self.squares, self.counts[:, None], self.squares)

    def compute(self) -> Tensor:
        """Return the means."""
        return self.means()

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the largest class mean of each unit, in descending order."""
        return plot_best(self.compute() if val is None else val, "largest class mean", ax)


def variances(sums: Tensor, squares: Tensor, counts: Tensor, of: Tensor) -> Tensor:
    """Return population variances; exactly 0 where rounding alone may have made them.

    Args:
        sums: Sums of activations.
        squares: Sums of their squares.
        counts: How many there are of each.
        of: The largest sum of squares that `squares` was added or subtracted from: what rounding is relative to.
    """
    variance = ratio(squares, counts) - ratio(sums, counts) ** 2
    return variance.masked_fill_(variance <= ROUNDING * (counts + 8) * ratio(of, counts), 0.0)


def blocks(table: Tensor) -> Iterator[slice]:
    """Yield the rows of a table `(C, K)` in parts of some megabytes."""
    n_rows = max(1, ENTRIES_AT_A_TIME // table.shape[1])
    for start in range(0, len(table), n_rows):
        yield slice(start, start + n_rows)


def add_zeros(metric: Metric, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Add a summed state of zeros, whose default takes the memory of one: torchmetrics would keep two tables."""
    metric.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")
    metric._defaults[name] = torch.zeros((), dtype=dtype).expand(shape)  # `reset` makes a copy


def check_classes(activations: Tensor, labels: Tensor, n_classes: int) -> None:
    """Raise an error that names a label `(B,)` that is no class, or an activation `(B, K)` that is not finite."""
    if activations.ndim != 2 or labels.shape != activations.shape[:1]:
        raise UserError(f"activations {tuple(activations.shape)} and labels {tuple(labels.shape)}: not (B, K) and (B,)")
    check_integers(labels)
    is_other = (labels < 0) | (labels >= n_classes)
    if is_other.any():
        raise UserError(f"labels: {int(labels[is_other][0])} is none of {n_classes} classes, which count from 0")
    check_finite(activations)


def check_integers(labels: Tensor) -> None:
    """Raise an error where labels are no whole numbers: they would be cut."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"labels: of {labels.dtype}, and classes are whole numbers")


def check_finite(activations: Tensor) -> None:
    """Raise an error that names an activation `(B, K)` that is not finite."""
    if activations.sum().isfinite():  # takes a thirtieth of the time, but the sum of finite numbers may overflow
        return
    row, unit = (~activations.isfinite()).nonzero(as_tuple=True)
    if len(row):
        value = float(activations[row[0], unit[0]])
        raise UserError(f"activations: {value} in row {int(row[0])}, unit {int(unit[0])} is not finite")


def plot_units(values: Tensor, name: str, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
    """Plot one value per unit `(K,)` in descending order, without nan."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
    axes.plot(values[~values.isnan()].sort(descending=True).values.tolist())
    axes.set(xlabel="units, largest first", ylabel=name)
    return figure, axes


def plot_best(table: Tensor, name: str, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
    """Plot the largest value of each unit over classes `(C, K)`, in descending order."""
    best = torch.where(table.isnan(), -torch.inf, table).reshape(-1, table.shape[-1] if table.ndim else 1).amax(0)
    return plot_units(best[best > -torch.inf], name, ax)
