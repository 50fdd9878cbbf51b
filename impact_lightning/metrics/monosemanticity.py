"""MonoSemanticity score: whether the images that drive a unit look alike (arXiv 2504.02821)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio
from impact_lightning.types import UserError


class Scores(NamedTuple):
    """One score per unit, and what units without meaning would score."""

    score: Tensor  # (K,) float64; nan where fewer than two images drive the unit
    null: Tensor  # () float64, the expectation of every score when embeddings are permuted among images
    n: Tensor  # () int64, images
    undefined: Tensor  # () int64, units without a score


class Monosemanticity(Metric):
    """Mean cosine of the embeddings of image pairs, weighted by how much both images drive the unit.

    With `a = (x - min) / (max - min)` over all images, `MS = sum_{i<j} a_i a_j cos(e_i, e_j) / sum_{i<j} a_i a_j`. The
    embeddings come from an image encoder that has nothing to do with the model that is measured. One-hot labels as
    embeddings give the label-MS: the weighted share of pairs with the same label.

    Permuted embeddings leave the weights as they are and turn each cosine into the mean of all, so that the null is
    exact: the mean cosine of two different images, the same for every unit.

    Args:
        n_units: Number K of units.
        width: Width E of the embeddings, or number of labels.

    Example:
        >>> metric = Monosemanticity(n_units=1, width=2)
        >>> metric.update(torch.tensor([[0.0], [1.0], [1.0]]), torch.eye(2)[[0, 1, 1]])
        >>> metric.compute().score.item(), round(metric.compute().null.item(), 3)
        (1.0, 0.333)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    weighted: Tensor
    embedded: Tensor
    total: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor
    images: Tensor

    def __init__(self, n_units: int, width: int) -> None:
        super().__init__()
        zeros = torch.zeros(n_units, dtype=torch.float64)  # float64: for rare units, large sums cancel
        self.add_state("weighted", torch.zeros(n_units, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("embedded", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("squares", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("low", zeros + torch.inf, dist_reduce_fx="min")
        self.add_state("high", zeros - torch.inf, dist_reduce_fx="max")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, activations: Tensor, embeddings: Tensor) -> None:
        """Add one pooled activation per image and unit `(N, K)`, and the images' embeddings `(N, E)`."""
        if len(activations) == 0:
            return  # nothing has no smallest value
        x, e = activations.double(), embeddings.double()
        norms = e.norm(dim=1, keepdim=True)  # (N, 1)
        if not (norms > 0).all():
            raise UserError("embeddings: one is zero or not a number, so that it has no cosine with others")
        e = e / norms
        self.weighted += x.T @ e  # (K, N) @ (N, E)
        self.embedded += e.sum(0)
        self.total += x.sum(0)
        self.squares += (x**2).sum(0)
        self.low = torch.minimum(self.low, x.amin(0))
        self.high = torch.maximum(self.high, x.amax(0))
        self.images += len(x)

    def compute(self) -> Scores:
        """Return the scores, by `sum_{i≠j} a_i a_j cos_ij = |sum_i a_i e_i|² - sum_i a_i²`."""
        n, low, span = self.images, self.low, self.high - self.low  # (K,)
        vector = (self.weighted - low[:, None] * self.embedded) / span[:, None]  # (K, E), sum of a·e
        first = (self.total - n * low) / span  # (K,), sum of a
        second = (self.squares - 2 * low * self.total + n * low**2) / span**2  # (K,), sum of a²
        pairs = first**2 - second
        is_defined = (span > 0) & (pairs > 1e-9 * first**2)  # one image alone leaves rounding errors of 1e-16
        score = torch.where(is_defined, ((vector**2).sum(1) - second) / pairs, torch.nan)
        null = ratio((self.embedded**2).sum() - n, n * (n - 1))
        return Scores(score, null, n, (~is_defined).sum())

    def plot(self, val: Scores | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the scores of units in descending order, and the null."""
        import matplotlib.pyplot as plt

        scores = self.compute() if val is None else val
        figure, axes = plt.subplots() if ax is None else (ax.get_figure(), ax)
        axes.plot(scores.score[~scores.score.isnan()].sort(descending=True).values.tolist(), label="units")
        axes.axhline(float(scores.null), linestyle="--", color="grey", label="null")
        axes.set(xlabel="units, best first", ylabel="MonoSemanticity")
        axes.legend()
        return figure, axes
