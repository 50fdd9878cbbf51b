"""Mean cosine: how well the direction of activations is reconstructed."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from impact_lightning.metrics.ratio import ratio


class MeanCosine(Metric):
    """Mean over tokens of `cos(x, x̂)`; tokens where one of both is zero have none, and are counted.

    Example:
        >>> metric = MeanCosine()
        >>> metric.update(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'cosine': 1.0, 'n': 1, 'undefined': 1}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    tokens: Tensor
    undefined: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("undefined", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, x: Tensor, reconstruction: Tensor) -> None:
        """Add activations `(..., D)` and their reconstructions `(..., D)`."""
        assert x.shape == reconstruction.shape, f"{tuple(x.shape)} is not {tuple(reconstruction.shape)}"
        x, reconstruction = x.flatten(0, -2).double(), reconstruction.flatten(0, -2).double()  # (..., D) -> (N, D)
        lengths = x.norm(dim=1) * reconstruction.norm(dim=1)  # (N,)
        cosines = ratio((x * reconstruction).sum(1), lengths)  # (N,)
        is_undefined = lengths == 0
        self.total += torch.where(is_undefined, 0.0, cosines).sum()
        self.undefined += is_undefined.sum()
        self.tokens += (~is_undefined).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return `cosine` in float64 (nan before any token), and the numbers of tokens `n` and `undefined`."""
        return {"cosine": ratio(self.total, self.tokens), "n": self.tokens, "undefined": self.undefined}

    def plot(self, val: Tensor | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot the mean cosine, or values of it that were kept."""
        return self._plot(self.compute()["cosine"] if val is None else val, ax)
