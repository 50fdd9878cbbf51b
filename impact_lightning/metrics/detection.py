"""Detection: how well each unit detects the one class that it prefers."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio
from impact_lightning.metrics.unit_bins import Ranked, SecondPass, bins_at, checked, checked_labels, is_wide
from impact_lightning.types import UserError


class Detections(NamedTuple):
    """Per unit, `(K,)` float64; nan where undefined. An error of 0 is exact."""

    informedness: Tensor  # J, the largest recall minus false positive rate of any threshold, at least 0
    average_precision: Tensor  # mean over the class of the precision at each of its images
    recall: Tensor  # the largest recall of any threshold with enough precision, 0 without one
    informedness_error: Tensor  # the exact J is between informedness and this much more
    precision_error: Tensor  # the exact average precision is no further away
    recall_error: Tensor  # the exact recall is between recall and this much more


class Detection(SecondPass):
    """Maximal informedness, average precision and recall at a precision, of each unit as a detector of one class.

    A threshold takes all images above it. Thresholds lie between bins, so that images that share a bin count as tied.
    Where they have several values, the errors hold for every order in which these may be.

    Args:
        edges: Bin edges `(K, E)` of each unit.
        counts: Images in each bin `(K, E + 1)`, from `BinCounts`, of all ranks.
        preferred: Class of each unit `(K,)`; -1 where it has none.
        precision: Least precision of the thresholds of `recall`.

    Example:
        >>> from impact_lightning.metrics.unit_bins import BinCounts, unit_edges
        >>> x, labels = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([0, 1, 0, 1])
        >>> counts = BinCounts(unit_edges(x, bins=16))
        >>> counts.update(x)
        >>> metric = Detection(counts.edges, counts.compute(), preferred=torch.tensor([1]))
        >>> metric.update(x, labels)
        >>> result = metric.compute()
        >>> result.informedness.item(), round(result.average_precision.item(), 3), result.recall.item()
        (0.5, 0.833, 0.5)
    """

    higher_is_better = True

    counts: Tensor
    preferred: Tensor
    positives: Tensor
    images: Tensor

    def __init__(self, edges: Tensor, counts: Tensor, preferred: Tensor, *, precision: float = 0.95) -> None:
        super().__init__(edges, counts)
        if preferred.shape != (len(edges),):
            raise UserError(f"preferred: shape {tuple(preferred.shape)}, but there are {len(edges)} units")
        self.precision = precision
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("preferred", preferred.long(), persistent=False)
        self.add_state("positives", torch.zeros_like(counts, dtype=torch.int32), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, activations: Tensor | Ranked, labels: Tensor) -> None:
        """Add one activation per image and unit `(B, K)`, and the images' labels `(B,)`."""
        n_images = len(activations.values if isinstance(activations, Ranked) else activations)
        labels = checked_labels(labels, n_images)
        image, unit = (labels[:, None] == self.preferred).nonzero(as_tuple=True)  # (M,) each
        if isinstance(activations, Ranked):
            bins = activations.bins[unit, image]
        else:  # few, so only they are put in bins
            bins = bins_at(self.edges, unit, checked(activations, len(self.preferred))[image, unit])
        at = unit * self.positives.shape[1] + bins  # (K, E + 1) -> (K (E + 1))
        self.positives.view(-1).index_add_(0, at, self.positives.new_ones(()).expand_as(at))
        self.images += len(labels)

    def compute(self) -> Detections:
        """Return the scores, after as many images as were counted."""
        self._check(self.images)
        parts = (part.split(1024) for part in (self.edges, self.counts, self.positives))  # they are large in float64
        scores = [self._scores(*part) for part in zip(*parts, strict=True)]
        return Detections(*map(torch.cat, zip(*scores, strict=True)))

    def _scores(self, edges: Tensor, counts: Tensor, positives: Tensor) -> tuple[Tensor, ...]:
        """Return the fields of `Detections` for units whose bins `(k, E + 1)` these are."""
        hits, misses = positives.long(), counts.long() - positives  # (k, E + 1) in the class and not
        n_hits, n_misses = hits.sum(1, keepdim=True), misses.sum(1, keepdim=True)  # (k, 1)
        above, wrong = (
            hits.flip(1).cumsum(1).flip(1),
            misses.flip(1).cumsum(1).flip(1),
        )  # (k, E + 1) taken from a bin up
        recall = ratio(above, n_hits)
        precision = ratio(above, above + wrong)

        # inside a wide bin, the best order has all of the class on top: its last image is then taken with these alone
        wrong_before = wrong - misses
        is_open = is_wide(edges) & (hits > 0) & (misses > 0)  # the order matters
        best = torch.where(is_open, ratio(above, above + wrong_before), precision)
        # the worst order has the class at the bottom: its i-th image has at least this precision, concave in i,
        # so that the mean is at least that of the first and the last
        first = above - hits + 1
        worst = torch.where(
            is_open | is_wide(edges) & (hits > 1), (precision + ratio(first, first + wrong)) / 2, precision
        )

        gain = recall - ratio(wrong, n_misses)
        best_gain = torch.where(is_open, recall - ratio(wrong_before, n_misses), gain)
        informedness, most = (x.amax(1).clamp_min(0) for x in (gain, best_gain))
        average, high, low = ((ratio(hits, n_hits) * x.nan_to_num()).sum(1) for x in (precision, best, worst))
        reached, reachable = (
            torch.where((x >= self.precision) | n_hits.eq(0), recall, 0.0).amax(1) for x in (precision, best)
        )
        error = torch.maximum(high - average, average - low)
        return informedness, average, reached, most - informedness, error, reachable - reached

    def plot(self, val: Detections | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot informedness and average precision of units, each in descending order."""
        import matplotlib.pyplot as plt

        scores = self.compute() if val is None else val
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        for name in ("informedness", "average_precision"):
            score = getattr(scores, name)
            axes.plot(score[~score.isnan()].sort(descending=True).values.tolist(), label=name.replace("_", " "))
        axes.set(xlabel="units, best first", ylabel="detection of the preferred class")
        axes.legend()
        return figure, axes
