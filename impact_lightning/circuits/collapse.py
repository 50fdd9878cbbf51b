"""Collapse: a circuit in which two nodes of one chain went off has no gradient left, and is set back."""

import torch
from torch import Tensor, nn

LOST = 0.5  # of the way from the target to the empty circuit: beyond, a step is lost
STEPS = 3  # lost in a row make a collapse: one alone may be an unlucky batch


class LastGood(nn.Module):
    """The thresholds at which each circuit last reached its target, and how many steps were lost since.

    A node that is off has a gradient only while something that it feeds is on. Where a step turns off two nodes of a
    chain, neither comes back, and the price of nodes then turns off all others.

    Args:
        shape: Of the thresholds `(P, n)`.
    """

    thresholds: Tensor
    is_known: Tensor
    lost: Tensor

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.register_buffer("thresholds", torch.zeros(shape))
        self.register_buffer("is_known", torch.zeros(shape[0], dtype=torch.bool))
        self.register_buffer("lost", torch.zeros(shape[0], dtype=torch.int64))

    @torch.no_grad()
    def keep(self, thresholds: Tensor, reached: Tensor) -> None:
        """Remember the thresholds `(P, n)` of circuits that reached their targets in this step `(P,)`."""
        self.thresholds[reached] = thresholds[reached]
        self.is_known |= reached

    def collapsed(self, losses: Tensor, targets: Tensor, empty: Tensor) -> Tensor:
        """Return which circuits are lost after a step, `(P,)`; the empty circuit's loss may be below the target."""
        beyond = losses > targets + LOST * (empty - targets).clamp_min(1e-3)
        self.lost.copy_(torch.where(beyond, self.lost + 1, 0))
        rows = self.is_known & (self.lost >= STEPS)
        self.lost[rows] = 0
        return rows


@torch.no_grad()
def set_back(thresholds: nn.Parameter, good: LastGood, rows: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Set circuits `(P,)` back to where they were good, without the momentum that led away from there."""
    thresholds[rows] = good.thresholds[rows]
    for moment in optimizer.state.get(thresholds, {}).values():
        if isinstance(moment, Tensor) and moment.shape == thresholds.shape:
            moment[rows] = 0.0
