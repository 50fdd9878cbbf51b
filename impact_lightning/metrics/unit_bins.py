"""Unit bins: a histogram of every unit's activations in bins of its own, the first of two passes over images."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.class_sums import check_integers
from impact_lightning.types import UserError

TINY = 1.2e-38  # just above the smallest normal float32: what is nearer to zero may be flushed to it, so it always is
AT_ONCE = 2**22  # values that are sorted at once


def unit_edges(sample: Tensor, bins: int = 1024) -> Tensor:
    """Return bin edges of each unit `(K, bins - 1)`, sorted, float32, from the activations of a calibration sample.

    Bins are closed on the right and hold about as many images each. A value that many images share, as zero after a
    ReLU, has a bin of its own: its edges are the value and the number below it. Where the sample has at most
    `(bins - 3) // 2` values, each of them has such a bin. Edges that are not needed are infinite.

    Args:
        sample: Activations `(N, K)`; some thousand images give nearly equal bins.
        bins: Number of bins.

    Example:
        >>> unit_edges(torch.tensor([[2.0], [2.0]]), bins=8)[:, 1:].tolist()
        [[0.0, 1.9999998807907104, 2.0, inf, inf, inf]]
    """
    if bins < 8:
        raise UserError(f"bins: {bins} is too few, take 8 or more")
    if len(sample) == 0:
        raise UserError("sample: bins need the activations of at least one image")
    parts = sample.split(max(1, AT_ONCE // len(sample)), dim=1)
    return torch.cat([_edges(_cleaned(part).T.contiguous(), bins - 1) for part in parts])


def unit_bins(edges: Tensor, activations: Tensor) -> Tensor:
    """Return the bin of each activation `(B, K)`, int64, as `(K, B)`: the number of its unit's edges below it."""
    return torch.searchsorted(edges, checked(activations, len(edges)).T.contiguous())


def bins_at(edges: Tensor, units: Tensor, values: Tensor) -> Tensor:
    """Return the bins `(M,)` of single values `(M,)` of the units `(M,)`, which `checked` has seen."""
    low, high = torch.zeros_like(units), torch.full_like(units, edges.shape[1])
    for _ in range(edges.shape[1].bit_length()):
        middle = (low + high) // 2
        is_right = (low < high) & (edges[units, middle.clamp_max(edges.shape[1] - 1)] < values)
        low, high = torch.where(is_right, middle + 1, low), torch.where(is_right, high, middle)
    return low


def checked(activations: Tensor, n_units: int) -> Tensor:
    """Return activations `(B, K)` in float32, those below the smallest normal number as zero; refuse what is none."""
    if activations.ndim != 2 or activations.shape[1] != n_units:
        raise UserError(f"activations: shape {tuple(activations.shape)}, but the metric has {n_units} units")
    return _cleaned(activations)


def checked_labels(labels: Tensor, n_images: int, n_classes: int | None = None) -> Tensor:
    """Return labels `(B,)` in int64; refuse those that are no class."""
    if labels.shape != (n_images,):
        raise UserError(f"labels: shape {tuple(labels.shape)}, but there are {n_images} images")
    check_integers(labels)
    if n_images and (labels.min() < 0 or (n_classes is not None and labels.max() >= n_classes)):
        limit = "" if n_classes is None else f" to {n_classes - 1}"
        raise UserError(f"labels: from {int(labels.min())} to {int(labels.max())}, but classes are 0{limit}")
    return labels.long()


def is_wide(edges: Tensor) -> Tensor:
    """Return which bins `(K, E + 1)` may hold more than one value, which edges alone tell."""
    outside = edges.new_full((len(edges), 1), torch.inf)
    low, high = torch.cat([-outside, edges], 1), torch.cat([edges, outside], 1)  # (K, E + 1)
    is_zero = (low == edges.new_tensor(-TINY)) & (high == 0)
    return (torch.nextafter(low, outside) < high) & ~is_zero


def widest(edges: Tensor, counts: Tensor) -> Tensor:
    """Return the most images in one bin of several values, `(K,)` int64; 0 for units whose bins are all exact."""
    parts = zip(edges.split(1024), counts.split(1024), strict=True)
    most = [torch.where(is_wide(edge) & (count > 1), count, 0).amax(1).long() for edge, count in parts]
    return torch.cat(most)


def midranks(counts: Tensor) -> Tensor:
    """Return twice the mean rank of the images in each bin, ranks from 1, as `(K, E + 1)` integers.

    Example:
        >>> midranks(torch.tensor([[1, 2]])).tolist()
        [[2, 5]]
    """
    is_small = len(counts) == 0 or 2 * int(counts[0].sum()) + 1 < 2**31  # units have the same number of images
    dtype = torch.int32 if is_small else torch.int64
    return 2 * counts.cumsum(1, dtype=dtype) - counts.to(dtype) + 1


class Binned(Metric):
    """A metric that puts activations in bins.

    Args:
        edges: Bin edges `(K, E)` of each unit, from `unit_edges`.
    """

    is_differentiable = False
    full_state_update = False

    bits: Tensor

    def __init__(self, edges: Tensor) -> None:
        super().__init__()
        # the bits of float32 as integers: a model that is cast to half precision would round a float buffer
        self.register_buffer("bits", edges.float().contiguous().view(torch.int32), persistent=False)

    @property
    def edges(self) -> Tensor:
        """Bin edges `(K, E)`, float32."""
        return self.bits.view(torch.float32)


class Ranked(NamedTuple):
    """Activations whose places among those of all images are known."""

    values: Tensor  # (B, K) float32
    bins: Tensor  # (K, B) int64
    midranks: Tensor  # (K, B) twice the mean rank of the images in the bin, ranks from 1

    def of(self, units: Tensor) -> "Ranked":
        """Return those of some units `(M,)`."""
        return Ranked(self.values[:, units], self.bins[units], self.midranks[units])


class SecondPass(Binned):
    """A metric that sees the same images again, knowing how many of them fall in each bin.

    Its values exist only when it has seen all of them: add batches with `update`, rather than by a call. To put a
    batch in bins takes most of the time, so that metrics with the same bins may share what `ranked` returns.

    Args:
        edges: Bin edges `(K, E)` of each unit.
        counts: Images in each bin `(K, E + 1)`, from `BinCounts`, of all ranks.
    """

    midranks: Tensor
    widest: Tensor

    def __init__(self, edges: Tensor, counts: Tensor) -> None:
        super().__init__(edges)
        if counts.shape != (len(edges), edges.shape[1] + 1):
            raise UserError(f"counts: shape {tuple(counts.shape)} does not fit edges {tuple(edges.shape)}")
        totals = counts.sum(1)  # (K,)
        if len(totals) and not (totals == totals[0]).all():
            raise UserError("counts: units were counted on different numbers of images")
        self.total = int(totals[0]) if len(totals) else 0
        self.register_buffer("widest", widest(edges, counts), persistent=False)
        self.register_buffer("midranks", midranks(counts), persistent=False)  # (K, E + 1)

    def ranked(self, activations: "Tensor | Ranked") -> Ranked:
        """Return activations `(B, K)` with their bins and ranks."""
        if isinstance(activations, Ranked):
            return activations
        values = checked(activations, len(self.midranks))
        bins = torch.searchsorted(self.edges, values.T.contiguous())  # (K, B)
        return Ranked(values, bins, self.midranks.gather(1, bins))

    def _check(self, n: Tensor) -> None:
        if int(n) != self.total:
            raise UserError(
                f"the second pass saw {int(n)} images, but bins were counted on {self.total}: pass the same"
            )


class BinCounts(Binned):
    """Images in each bin of each unit.

    Args:
        edges: Bin edges `(K, E)` of each unit, from `unit_edges`.

    Example:
        >>> metric = BinCounts(unit_edges(torch.tensor([[0.0], [1.0]]), bins=8))
        >>> metric.update(torch.tensor([[0.0], [1.0], [0.0], [2.0]]))
        >>> metric.compute().tolist()
        [[0, 2, 0, 1, 1, 0, 0, 0]]
    """

    higher_is_better = None

    counts: Tensor

    def __init__(self, edges: Tensor) -> None:
        super().__init__(edges)
        counts = torch.zeros(len(edges), edges.shape[1] + 1, dtype=torch.int32, device=edges.device)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, activations: Tensor) -> None:
        """Add one activation per image and unit `(B, K)`."""
        bins = unit_bins(self.edges, activations)  # (K, B)
        self.counts.scatter_add_(1, bins, self.counts.new_ones(()).expand_as(bins))

    def compute(self) -> Tensor:
        """Return the counts `(K, E + 1)`, int32."""
        return self.counts.int()  # a sum over ranks is int64

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the share of images in the fullest bin of several values, by unit: twice what an AUROC may be off."""
        import matplotlib.pyplot as plt

        counts = self.compute() if val is None else val
        share = widest(self.edges, counts) / counts.sum(1).clamp_min(1)
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        axes.plot(share.sort(descending=True).values.tolist())
        axes.set(xlabel="units, coarsest first", ylabel="images in the fullest bin of several values")
        return figure, axes


def _cleaned(activations: Tensor) -> Tensor:
    x = activations.float()
    if not x.isfinite().all():
        raise UserError("activations: some are infinite or not a number")
    return F.hardshrink(x, TINY)


def sorted_rows(x: Tensor) -> Tensor:
    """Sort each row; on a CPU with numpy, whose vectorised sort is ten times as fast."""
    return x.sort(1).values if x.is_cuda else torch.from_numpy(np.sort(x.numpy(force=True), axis=1)).to(x.device)


def _merged(values: Tensor) -> Tensor:
    """Return each row sorted, without duplicates, infinite at its end."""
    values = sorted_rows(values)
    is_again = F.pad(values[:, 1:] == values[:, :-1], (1, 0))
    return sorted_rows(values.masked_fill(is_again, torch.inf))


def _edges(sample: Tensor, n_edges: int) -> Tensor:
    """Return the edges `(k, E)` of activations `(k, N)`."""
    values = sorted_rows(sample)
    room = n_edges - 2  # zero always has its own bin
    is_same = values[:, 1:] == values[:, :-1]  # (k, N - 1)
    is_shared = F.pad(is_same, (1, 0)) | F.pad(is_same, (0, 1))  # (k, N)
    n_values = values.shape[1] - is_same.sum(1)  # (k,)
    edges = values.new_full((len(values), n_edges), torch.inf)
    is_few = n_values <= room // 2
    distinct = _merged(values[is_few])[:, : room // 2]
    edges[is_few] = _with_atoms(distinct, torch.ones_like(distinct, dtype=torch.bool), n_edges)[:, :n_edges]
    left = (~is_few).nonzero().flatten()
    for parts in (
        32,
        31,
        28,
        24,
        20,
        16,
    ):  # the more values are shared, the fewer quantiles fit; half of them always do
        q, n = room * parts // 32, values.shape[1]
        at = (torch.arange(1, q + 1, device=values.device) * n + q) // (q + 1) - 1  # (q,) ranks ⌈i n / (q + 1)⌉, from 0
        found = _with_atoms(values[left][:, at], is_shared[left][:, at], n_edges)
        fits = found[:, n_edges] == torch.inf
        edges[left[fits]] = found[fits, :n_edges]
        left = left[~fits]
    return edges


def _with_atoms(values: Tensor, is_atom: Tensor, n_edges: int) -> Tensor:
    """Return zero, the values `(k, q)` and the numbers below atoms, merged, `(k, > E)`."""
    below = torch.nextafter(values, values.new_tensor(-torch.inf))
    below = torch.where(values == 0, -TINY, torch.where(is_atom & values.isfinite(), below, values))
    zero = values.new_tensor([-TINY, 0.0]).expand(len(values), 2)
    merged = _merged(torch.cat([values, below, zero], 1))
    return F.pad(merged, (0, max(0, n_edges + 1 - merged.shape[1])), value=torch.inf)
