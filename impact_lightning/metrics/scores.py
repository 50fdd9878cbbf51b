"""The scores of a classifier on one split: loss, top-1 and top-5."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from impact_lightning.metrics.accuracy import TopKAccuracy
from impact_lightning.metrics.intervals import wilson
from impact_lightning.metrics.mean import ExactMean


class ClassifierScores(nn.Module):
    """Loss and top-k accuracies, each with sample count, 95 % interval and, for accuracies, null.

    Args:
        n_classes: Number of classes; top-5 is left out where it says nothing.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.top1 = TopKAccuracy(n_classes, 1)
        self.top5 = TopKAccuracy(n_classes, 5) if n_classes > 5 else None
        self.loss = ExactMean()
        self.squared_loss = ExactMean()

    @property
    def _accuracies(self) -> dict[str, TopKAccuracy]:
        return {"top1": self.top1} | ({"top5": self.top5} if self.top5 is not None else {})

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add the logits `(B, C)` and labels `(B,)` of one batch."""
        losses = F.cross_entropy(logits.float(), labels, reduction="none").double()  # (B,)
        self.loss.update(losses)
        self.squared_loss.update(losses**2)
        for metric in self._accuracies.values():
            metric.update(logits, labels)

    def collect(self) -> dict[str, dict[str, float]]:
        """Return `value`, `n`, `low`, `high` and `null` of every score over all ranks, and start anew."""
        scores = {
            name: {key: float(value) for key, value in metric.compute().items()}
            for name, metric in self._accuracies.items()
        }
        for score in scores.values():
            score["low"], score["high"] = wilson(score["value"] * score["n"], int(score["n"]))
        n = scores["top1"]["n"]
        loss, squared = float(self.loss.compute()), float(self.squared_loss.compute())
        half = 1.96 * math.sqrt(max(0.0, squared - loss**2) / n) if n else math.nan
        scores["loss"] = {"value": loss, "n": n, "low": loss - half, "high": loss + half}
        for metric in (self.loss, self.squared_loss, *self._accuracies.values()):
            metric.reset()
        return scores
