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

    totals: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("totals", torch.zeros(3, 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, clean: Tensor, spliced: Tensor, ablated: Tensor, labels: Tensor) -> None:
        """Add the logits `(B, C)` of the three models, and labels `(B,)`."""
        self.totals += image_scores(clean, spliced, ablated, labels).sum(0)
        self.samples += len(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return recovered shares (nan where ablation changes nothing), plain differences to clean, and samples `n`."""
        return {**recovered(self.totals, self.samples), "n": self.samples}

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the loss recovered, or values of it that were kept."""
        return self._plot(self.compute()["loss_recovered"] if val is None else val, ax)


def image_scores(clean: Tensor, spliced: Tensor, ablated: Tensor, labels: Tensor) -> Tensor:
    """Return loss, hit and divergence from the clean prediction of each image under each model, `(B, 3, 3)` float64.

    Args:
        clean: Logits `(B, C)` of the model as it is.
        spliced: Logits with the reconstruction in its place.
        ablated: Logits with the site ablated.
        labels: Labels `(B,)`.
    """
    log_p = torch.stack([clean, spliced, ablated]).double().log_softmax(-1)  # (3, B, C)
    losses = torch.stack([F.nll_loss(each, labels, reduction="none") for each in log_p])  # (3, B)
    hits = (log_p.argmax(-1) == labels).double()
    return torch.stack([losses, hits, _divergence(log_p[0], log_p)]).permute(2, 0, 1)  # (3, 3, B) -> (B, 3, 3)


def recovered(totals: Tensor, n: Tensor) -> dict[str, Tensor]:
    """Return recovered shares and plain differences from sums of `image_scores` `(..., 3, 3)` over n images `(...)`."""
    clean, spliced, ablated = totals.unbind(-1)  # (..., 3) each: loss, hits, divergence
    share = ratio(ablated - spliced, ablated - clean)
    difference = ratio(spliced - clean, n[..., None])
    names = ("loss_recovered", "top1_recovered", "kl_recovered"), ("loss_difference", "top1_difference", "kl")
    return {
        name: values[..., i]
        for values, row in zip((share, difference), names, strict=True)
        for i, name in enumerate(row)
    }


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return `KL(p | q) = sum_c p_c (ln p_c - ln q_c)`; a class that p excludes adds nothing."""
    return torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0.0).sum(-1)
