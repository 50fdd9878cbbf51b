"""Top-k accuracy with its null: what the same guesses score when labels are permuted."""

import torch
from torch import Tensor
from torchmetrics import Metric


class TopKAccuracy(Metric):
    """Share of samples whose label is among the k largest logits, beside its permuted-label null.

    With `p_c` the share of samples whose k best guesses contain class c, and `l_c` the share of samples with label c,
    the expected accuracy over all permutations of the labels is `sum_c p_c * l_c`, exactly.

    Args:
        n_classes: Number of classes.
        k: Guesses per sample.

    Example:
        >>> metric = TopKAccuracy(2)
        >>> metric.update(torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 1, 1]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'value': 0.667, 'null': 0.444, 'n': 3}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    correct: Tensor
    guessed: Tensor
    labelled: Tensor

    def __init__(self, n_classes: int, k: int = 1) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.k = min(k, n_classes)
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")  # all int64: exact on any number of ranks
        self.add_state("guessed", torch.zeros(n_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("labelled", torch.zeros(n_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add the logits `(B, C)` and labels `(B,)` of one batch."""
        guesses = logits.topk(self.k, dim=1).indices  # (B, k)
        self.correct += (guesses == labels[:, None]).sum()
        self.guessed += torch.bincount(guesses.flatten(), minlength=self.n_classes)
        self.labelled += torch.bincount(labels, minlength=self.n_classes)

    def compute(self) -> dict[str, Tensor]:
        """Return `value` and `null` in float64 (nan before any sample), and the number of samples `n`."""
        n = self.labelled.sum()
        null = (self.guessed.double() @ self.labelled.double()) / n.double() ** 2
        return {"value": self.correct.double() / n, "null": null, "n": n}
