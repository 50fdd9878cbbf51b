"""Size: how many nodes a circuit may keep: a fixed price for each, or a loss that it must reach."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from impact_lightning.types import UserError


@dataclass(frozen=True)
class Target:
    """The loss that circuits are compared at.

    Args:
        kind: `relative` goes `value` of the way from the whole model's loss to that of the empty circuit, or to that of
            a coin where it is less; `above` is the whole model's loss and `value` more, `absolute` is `value`.
        value: See there.
    """

    kind: Literal["relative", "above", "absolute"] = "relative"
    value: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what is no loss."""
        if not math.isfinite(self.value):
            raise UserError(f"model.target.value must be a number, got {self.value}")

    def of(self, full: Tensor, empty: Tensor) -> Tensor:
        """Return the target of each circuit from the losses of the whole model and of the empty circuit, `(P,)`."""
        if self.kind == "absolute":
            return torch.full_like(full, self.value)
        return full + (self.value if self.kind == "above" else self.value * (empty - full))


CHEAPEST, DEAREST = 1e-8, 1e-1


class Prices(nn.Module):
    """The price of a node in each circuit: fixed, or moved until the circuit's loss is the target (dual ascent).

    Args:
        n: Number of circuits.
        fixed: The price of all; None moves them.
        start: Where moving prices begin.
        rate: How far a price moves in a step, in units of its logarithm.
    """

    log_price: Tensor
    mean_loss: Tensor

    def __init__(self, n: int, fixed: float | None, start: float = 1e-5, rate: float = 0.02) -> None:
        super().__init__()
        if fixed is not None and not 0 <= fixed < math.inf:
            raise UserError(f"model.learning.penalty must be a price of a node, 0 or more, got {fixed}")
        self.is_fixed = fixed is not None
        self.rate = rate
        price = start if fixed is None else fixed
        self.register_buffer(
            "log_price", torch.full((n,), math.log(price) if price else -math.inf, dtype=torch.float64)
        )
        self.register_buffer("mean_loss", torch.full((n,), torch.nan, dtype=torch.float64))

    def __call__(self) -> Tensor:
        """Return the prices `(P,)`."""
        return self.log_price.exp()

    @torch.no_grad()
    def move(self, losses: Tensor, targets: Tensor, full: Tensor, *, progress: float) -> None:
        """Move the prices after a step: up where the loss is below its target.

        Args:
            losses: Of the step `(P,)`.
            targets: `(P,)`.
            full: Losses of the whole model `(P,)`.
            progress: Which share of the training is over; prices stand still in its first and last part.
        """
        fresh = self.mean_loss.isnan()
        self.mean_loss.copy_(torch.where(fresh, losses.double(), 0.95 * self.mean_loss + 0.05 * losses.double()))
        if self.is_fixed or not 0.05 <= progress < 0.9:
            return
        scale = (targets - full).clamp_min(1e-3)
        moved = self.log_price + self.rate * ((targets - self.mean_loss) / scale).clamp(-1, 1)
        self.log_price.copy_(moved.clamp(math.log(CHEAPEST), math.log(DEAREST)))

    @torch.no_grad()
    def halve(self, rows: Tensor) -> None:
        """Halve the prices of circuits `(P,)` that collapsed, and forget their losses."""
        self.log_price[rows] = (self.log_price[rows] - math.log(2)).clamp_min(math.log(CHEAPEST))
        self.mean_loss[rows] = torch.nan


class Found(NamedTuple):
    """The sizes of circuits, `(P,)`; -1 where no evaluated size reaches the target."""

    smallest: Tensor  # the smallest evaluated size that reaches it
    safe: Tensor  # the smallest evaluated size from which on every evaluated size reaches it


GRID, HALVINGS = 24, 8


def ranking(scores: Tensor) -> Tensor:
    """Return the place of each switch in the order of descending scores `(P, n)`; of equal ones the lower is first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )


def smallest_circuits(losses: Callable[[Tensor, Tensor], Tensor], n: int, targets: Tensor) -> Found:
    """Search the smallest circuits that reach their targets: a grid of sizes, then halving towards the next smaller.

    The loss need not be monotone in the size.

    Args:
        losses: Returns the losses of circuits `(m,)` with sizes `(m,)`.
        n: Number of switches.
        targets: `(P,)`.
    """
    n_circuits = len(targets)
    sizes = torch.unique(torch.logspace(0, math.log10(n), GRID).round().long().clamp(0, n))
    sizes = torch.cat([torch.zeros(1, dtype=torch.long), sizes])
    circuits = torch.arange(n_circuits).repeat_interleave(len(sizes))
    table = losses(circuits, sizes.repeat(n_circuits)).view(n_circuits, -1)
    tried = [dict(zip(sizes.tolist(), row, strict=True)) for row in (table <= targets[:, None]).tolist()]
    for _ in range(HALVINGS):
        wanted = [(p, _between(known)) for p, known in enumerate(tried)]
        open_ = [(p, size) for p, size in wanted if size is not None]
        if not open_:
            break
        at, size = (torch.tensor(side) for side in zip(*open_, strict=True))
        reached = losses(at, size) <= targets[at]
        for p, k, is_reached in zip(at.tolist(), size.tolist(), reached.tolist(), strict=True):
            tried[p][k] = is_reached
    return Found(*(torch.tensor(column) for column in zip(*(_sizes(known) for known in tried), strict=True)))


def _between(tried: dict[int, bool]) -> int | None:
    """Return a size halfway between the smallest that reaches the target and the next smaller that was tried."""
    reached = [size for size, is_reached in tried.items() if is_reached]
    if not reached:
        return None
    high = min(reached)
    low = max((size for size in tried if size < high), default=high)
    return (low + high) // 2 if high - low > 1 else None


def _sizes(tried: dict[int, bool]) -> tuple[int, int]:
    reached = [size for size, is_reached in tried.items() if is_reached]
    failed = [size for size, is_reached in tried.items() if not is_reached]
    above = [size for size in reached if size > max(failed, default=-1)]
    return min(reached, default=-1), min(above, default=-1)
