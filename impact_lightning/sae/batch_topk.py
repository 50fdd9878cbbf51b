"""BatchTopK: the number of active latents is fixed for a batch, not for a token."""

from typing import Any

import torch
from torch import Tensor

from impact_lightning.sae.codes import Codes
from impact_lightning.sae.screen import ScreenName
from impact_lightning.sae.selection import BatchTopKSelection, Scope, Selection
from impact_lightning.sae.sparse_autoencoder import SparseSAE
from impact_lightning.types import UserError

DECAY = 0.99  # of the running mean of the cut


class BatchTopK(SparseSAE):
    """BatchTopK (arXiv 2412.06410): training keeps the `B·k` largest codes of a batch, inference those above `theta`.

    Args:
        d_in: Width of the input.
        n_latents: Number of features.
        k: Mean number of active latents per token; need not be whole.
        screen: How candidates are found; `bf16` selects the same and is faster where the processor knows bfloat16.
        scope: Whether the batch is that of all ranks or each rank's own, which depends on the number of ranks.
        options: See `SparseSAE`.
    """

    threshold: Tensor  # () float64: calibrated, nan before
    cut_sum: Tensor  # () float64: decaying sum of the cuts …
    cut_weight: Tensor  # () float64: … and of their weights; the quotient has no bias toward the start

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        k: float = 32,
        screen: ScreenName = "fp32",
        scope: Scope = "global",
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, k=k, **options)
        self.selection = BatchTopKSelection(screen, scope)
        self.register_buffer("threshold", torch.tensor(torch.nan, dtype=torch.float64))
        self.register_buffer("cut_sum", torch.zeros((), dtype=torch.float64))
        self.register_buffer("cut_weight", torch.zeros((), dtype=torch.float64))

    @property
    def theta(self) -> float:
        """Codes above this are active at inference: calibrated, or else the running mean of the cut."""
        if not self.threshold.isnan():
            return float(self.threshold)
        if not self.cut_weight:
            raise UserError("threshold: this dictionary has none yet; train it or calibrate one")
        return float(self.cut_sum / self.cut_weight)

    def choose(self, xc: Tensor, n_tokens: int) -> Codes:
        """See `SparseSAE.choose`; the running mean of the cut follows, and a calibrated threshold is out of date."""
        n_shared = n_tokens if self.selection.scope == "global" else len(xc)
        kept: Selection = self.selection(xc, self.w_enc, self.b_enc, round(n_shared * self.k * self.k_factor))
        self.cut_sum.mul_(DECAY).add_((1 - DECAY) * kept.cut)
        self.cut_weight.mul_(DECAY).add_(1 - DECAY)
        self.threshold.fill_(torch.nan)
        return kept.codes

    def activate(self, z: Tensor) -> Tensor:
        """See `SAE.activate`."""
        return z * (z > self.theta)
