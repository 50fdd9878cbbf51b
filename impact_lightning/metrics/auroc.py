"""AUROC: how well each unit tells each class from the rest, for every pair of them, with a bound on the error."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio
from impact_lightning.metrics.unit_bins import (
    BinCounts,
    Ranked,
    SecondPass,
    checked_labels,
    unit_edges,
)
from impact_lightning.types import UserError


class AUROCs(NamedTuple):
    """AUROC of each class and unit; the exact value is no further away than the certificate."""

    auroc: Tensor  # (C, K) float64; nan where a class has no images or all
    certificate: Tensor  # (K,) float64, for every class; 0 is exact, nan where no class has an AUROC
    widest: Tensor  # (K,) int64, images in the fullest bin of several values
    images: Tensor  # (C,) int64, images of a class


class UnitAUROC(SecondPass):
    """Area under the ROC curve of each unit for each class against all others, ties worth one half.

    From the mid-ranks of bins: `(R_c - n_c (n_c + 1) / 2) / (n_c (N - n_c))`, where R_c is the sum over the images of
    the class. Images that share a bin count as tied. That is exact where they have the same value; otherwise
    the error is at most `h / 2 max(n_c, N - n_c)`, where h is the largest count of a bin of several values, wherever
    the edges came from.

    The null of labels that do not matter has mean 0.5 and the deviation of `expected_null_std`.

    Args:
        edges: Bin edges `(K, E)` of each unit.
        counts: Images in each bin `(K, E + 1)`, from `BinCounts`, of all ranks.
        n_classes: Number C of classes.

    Example:
        >>> x, labels = torch.tensor([[0.0], [1.0], [2.0], [2.0]]), torch.tensor([0, 0, 1, 0])
        >>> counts = BinCounts(unit_edges(x, bins=16))
        >>> counts.update(x)
        >>> metric = UnitAUROC(counts.edges, counts.compute(), n_classes=2)
        >>> metric.update(x, labels)
        >>> metric.compute().auroc[1].item(), metric.compute().certificate.item()
        (0.8333333333333334, 0.0)
    """

    higher_is_better = True

    rank_sums: Tensor
    images: Tensor

    def __init__(self, edges: Tensor, counts: Tensor, n_classes: int) -> None:
        super().__init__(edges, counts)
        rank_sums = torch.zeros(n_classes, len(edges), dtype=torch.int64, device=edges.device)
        self.add_state("rank_sums", rank_sums, dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(n_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, activations: Tensor | Ranked, labels: Tensor) -> None:
        """Add one activation per image and unit `(B, K)`, and the images' labels `(B,)`."""
        ranked = self.ranked(activations)
        labels = checked_labels(labels, len(ranked.values), len(self.images))
        self.rank_sums.index_add_(0, labels, ranked.midranks.T.long().contiguous())
        self.images += torch.bincount(labels, minlength=len(self.images))

    def compute(self) -> AUROCs:
        """Return the AUROCs, after as many images as were counted."""
        self._check(self.images.sum())
        if not (self.rank_sums.sum(0) == self.total * (self.total + 1)).all():  # twice the sum of all ranks
            raise UserError("the second pass saw other activations than the bins were counted on: pass the same")
        n, rest = self.images, self.total - self.images  # (C,)
        auroc = ratio(self.rank_sums - (n * (n + 1))[:, None], (2 * n * rest)[:, None])  # (C, K)
        sides = torch.maximum(n, rest)[n * rest > 0]  # of classes that have an AUROC
        certificate = torch.full_like(self.widest, torch.nan, dtype=torch.float64)  # (K,)
        if len(sides):
            certificate = auroc_error(self.widest, self.images.sum(), self.total - sides.min())
        return AUROCs(auroc, certificate, self.widest, n)

    def plot(self, val: AUROCs | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the AUROC of each unit for its best class, in descending order."""
        import matplotlib.pyplot as plt

        auroc = (self.compute() if val is None else val).auroc
        best = auroc.nan_to_num(-torch.inf).amax(0)  # (K,)
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        axes.plot(best[best.isfinite()].sort(descending=True).values.tolist())
        axes.set(xlabel="units, best first", ylabel="AUROC for the best class")
        return figure, axes


def auroc_error(widest: Tensor, n: Tensor, n_c: Tensor) -> Tensor:
    """Return how far an AUROC of `n_c` among `n` images may be off, where h = `widest` images share a bin.

    Bins of P⁺ and P⁻, shares of the class and of the rest, are off by at most `½ Σ P⁺ P⁻`, which is at most
    `½ max P⁺` and `½ max P⁻`, and so at most `h / 2 max(n_c, n - n_c)`.

    Example:
        >>> auroc_error(torch.tensor(10), torch.tensor(1000), torch.tensor([[1], [200]])).tolist()
        [[0.005005005005005005], [0.00625]]
    """
    return ratio(widest, 2 * torch.maximum(n_c, n - n_c)).clamp_max(0.5)


def unit_auroc(activations: Tensor, labels: Tensor, n_classes: int, bins: int = 1024) -> AUROCs:
    """Return the AUROC of stored activations `(N, K)` and labels `(N,)`, for every class and unit.

    Example:
        >>> unit_auroc(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]), n_classes=2).auroc.tolist()
        [[0.0], [1.0]]
    """
    counts = BinCounts(unit_edges(activations, bins))
    counts.update(activations)
    metric = UnitAUROC(counts.edges, counts.compute(), n_classes)
    metric.update(activations, labels)
    return metric.compute()


def expected_null_std(n: Tensor, n_c: Tensor) -> Tensor:
    """Return the standard deviation of the AUROC of n images, n_c of them in the class, if labels do not matter.

    Example:
        >>> round(expected_null_std(torch.tensor(50_000), torch.tensor(50)).item(), 4)
        0.0408
    """
    return ratio(n + 1, 12 * n_c * (n - n_c)).sqrt()
