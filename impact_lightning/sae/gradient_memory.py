"""Memory for large gradients, kept from step to step."""

import torch
from torch import Tensor


class GradientMemory:
    """Hands out the same memory for a weight's gradient in every step.

    Above 32 MB the C library returns freed memory to the system, and a new gradient costs a page fault every 4 KB: as
    much time as a quarter of the whole step. The price: a gradient kept beyond `zero_grad()` is overwritten by the next
    `backward()`, so this is for training loops, and off unless asked for.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def room(self, name: str, weight: Tensor) -> Tensor:
        """Return uninitialised memory of the shape of `weight`, a new tensor object every time."""
        kept = self._kept.get(name)
        if weight.grad is not None:  # an earlier micro-batch's gradient may live in the kept memory
            return torch.empty_like(weight)
        if kept is None or kept.shape != weight.shape or kept.dtype != weight.dtype or kept.device != weight.device:
            kept = self._kept[name] = torch.empty_like(weight)
        return kept.detach()  # autograd takes over a gradient that nobody else holds, and copies any other
