"""Class variance of each class's own units, under labels that were permuted."""

import torch
from torch import Tensor
from torchmetrics import Metric

from impact_lightning.metrics.class_sums import variances
from impact_lightning.metrics.class_variance import relative_deviation


class OwnVariance(Metric):
    """Class variance of a few units of each class alone, which takes a fraction of the memory of all.

    The same numbers as `ClassVariance` has in these places.

    Args:
        columns: The units of each class, `(C, M)`.
        n_units: Number of all units.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    columns: Tensor
    sums: Tensor
    squares: Tensor
    counts: Tensor
    all_sums: Tensor
    all_squares: Tensor

    def __init__(self, columns: Tensor, n_units: int) -> None:
        super().__init__()
        self.register_buffer("columns", columns, persistent=False)
        for name, shape in (
            ("sums", columns.shape),
            ("squares", columns.shape),
            ("all_sums", (n_units,)),
            ("all_squares", (n_units,)),
        ):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(columns), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, activations: Tensor, labels: Tensor) -> None:
        """Add one activation per image and unit `(B, K)`, and the images' labels `(B,)`."""
        x = activations.double()
        own = x.gather(1, self.columns[labels])  # (B, M)
        self.sums.index_add_(0, labels, own)
        self.squares.index_add_(0, labels, own**2)
        self.all_sums += x.sum(0)
        self.all_squares += (x**2).sum(0)
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    def compute(self) -> Tensor:
        """Return standard deviation over mean `(C, M)`; nan where `ClassVariance` is."""
        total = variances(self.all_sums, self.all_squares, self.counts.sum(), self.all_squares)  # (K,)
        return relative_deviation(self.sums, self.squares, self.counts[:, None], total.sqrt()[self.columns])
