"""Recovered: how much of what a site does for the model survives its reconstruction."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio


class Recovered(Metric):
    """Loss, top-1 and KL divergence recovered when a reconstruction is spliced in at a site.

    With a score of the clean model, of the model with the reconstruction, and of the model with the site ablated, the
    recovered share is `(ablated - spliced) / (ablated - clean)`: 1 is as good as clean, 0 as bad as ablated, and values
    outside are kept. KL divergence is from the clean prediction, so that its clean value is 0.

    Example:
        >>> clean, ablated = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> metric = Recovered()
        >>> metric.update(clean, clean, ablated, torch.tensor([0]))
        >>> metric.compute()["loss_recovered"].item()
        1.0
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    losses: Tensor
    correct: Tensor
    divergences: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("losses", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")  # clean, spliced, ablated
        self.add_state("correct", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("divergences", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, clean: Tensor, spliced: Tensor, ablated: Tensor, labels: Tensor) -> None:
        """Add the logits `(B, C)` of the three models, and labels `(B,)`."""
        log_p = torch.stack([clean, spliced, ablated]).double().log_softmax(-1)  # (3, B, C)
        self.losses += torch.stack([F.nll_loss(each, labels, reduction="sum") for each in log_p])
        self.correct += (log_p.argmax(-1) == labels).sum(1)
        self.divergences += _divergence(log_p[0], log_p).sum(1)
        self.samples += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return recovered shares (nan where ablation changes nothing), plain differences to clean, and samples `n`."""
        n = self.samples
        return {
            "loss_recovered": _recovered(self.losses),
            "top1_recovered": _recovered(self.correct),
            "kl_recovered": _recovered(self.divergences),
            "loss_difference": ratio(self.losses[1] - self.losses[0], n),
            "top1_difference": ratio(self.correct[1] - self.correct[0], n),
            "kl": ratio(self.divergences[1], n),
            "n": n,
        }

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the loss recovered, or values of it that were kept."""
        return self._plot(self.compute()["loss_recovered"] if val is None else val, ax)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return `KL(p | q) = sum_c p_c (ln p_c - ln q_c)`; a class that p excludes adds nothing."""
    return torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0.0).sum(-1)


def _recovered(scores: Tensor) -> Tensor:
    clean, spliced, ablated = scores
    return ratio(ablated - spliced, ablated - clean)
