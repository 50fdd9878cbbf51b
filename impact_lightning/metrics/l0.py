"""L0: how many latents are active per token."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio


class L0(Metric):
    """Number of non-zero latents per token: its mean and its distribution.

    Args:
        n_latents: Number F of latents.

    Example:
        >>> metric = L0(3)
        >>> metric.update(torch.tensor([[0.0, 1.0, 0.0], [2.0, 3.0, 0.0]]))
        >>> {name: value.tolist() for name, value in metric.compute().items()}
        {'l0': 1.5, 'n': 2, 'histogram': [0, 1, 1, 0]}
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    histogram: Tensor

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.add_state("histogram", torch.zeros(n_latents + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        """Add the codes `(..., F)` of one batch."""
        active = torch.count_nonzero(codes, dim=-1).flatten()  # (..., F) -> (N,)
        self.histogram += torch.bincount(active, minlength=len(self.histogram))

    def compute(self) -> dict[str, Tensor]:
        """Return the mean `l0` (float64; nan before any token), the tokens `n`, and `histogram` `(F + 1,)` of L0."""
        n = self.histogram.sum()
        active = (self.histogram * torch.arange(len(self.histogram), device=n.device)).sum()
        return {"l0": ratio(active, n), "n": n, "histogram": self.histogram}

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the mean, or values of it that were kept."""
        return self._plot(self.compute()["l0"] if val is None else val, ax)
