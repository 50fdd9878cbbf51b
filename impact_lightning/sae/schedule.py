"""Schedules: what changes in the course of a training, as pure functions of the step."""

from dataclasses import dataclass

from impact_lightning.types import UserError


@dataclass(frozen=True)
class Schedule:
    """Courses of the learning rate, of k, and of the penalty of kinds that have one.

    Args:
        warmup_steps: Steps over which the learning rate rises to its value.
        decay: Share of all steps, at the end, over which the learning rate falls to zero.
        k_start: What k is multiplied with at the first step; it falls, or rises, linearly to 1.
        k_share: Share of all steps that this takes.
        penalty_share: Share of all steps, at the beginning, over which the penalty rises linearly from zero.
    """

    warmup_steps: int = 1000
    decay: float = 0.2
    k_start: float = 1.0
    k_share: float = 0.0
    penalty_share: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        for name in ("decay", "k_share", "penalty_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"schedule.{name} {getattr(self, name)} is a share of all steps: between 0 and 1")
        if self.warmup_steps < 0 or self.k_start <= 0:
            raise UserError(f"schedule: warmup_steps {self.warmup_steps} and k_start {self.k_start} must be positive")

    def learning_rate(self, step: int, total: int) -> float:
        """Return the factor of the learning rate at a step."""
        rise = (step + 1) / max(1, self.warmup_steps)
        fall = (total - step) / max(1.0, self.decay * total)
        return max(0.0, min(1.0, rise, fall))

    def k(self, step: int, total: int) -> float:
        """Return the factor of k at a step."""
        return self.k_start + (1 - self.k_start) * _way(step, self.k_share * total)

    def penalty(self, step: int, total: int) -> float:
        """Return the factor of the penalty at a step."""
        return _way(step, self.penalty_share * total)


def _way(step: int, steps: float) -> float:
    """Return how much of the way of so many steps lies behind, up to 1."""
    return min(1.0, step / steps) if steps > 0 else 1.0
