"""The course of the density in a weight-sparse training, as a pure function of the step."""

import math
from dataclasses import dataclass
from typing import Literal

from impact_lightning.types import UserError

Course = Literal["linear", "cubic", "exponential"]


@dataclass(frozen=True)
class DensitySchedule:
    """From 1 to the target over a share of all steps.

    Args:
        target: Density at the end.
        course: Linear; cubic, which is fast first (gradual magnitude pruning); or exponential.
        begin: Share of all steps after which it begins to fall.
        end: Share of all steps after which the target is reached.
    """

    target: float
    course: Course = "linear"
    begin: float = 0.0
    end: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is no course."""
        if not 0 < self.target <= 1:
            raise UserError(f"WeightSparse: density {self.target} must be above 0 and at most 1")
        if not 0 <= self.begin <= self.end <= 1:
            raise UserError(f"WeightSparse: begin {self.begin} and end {self.end} need 0 <= begin <= end <= 1")

    def density(self, steps: int, total: int) -> float:
        """Return the density after so many of all optimiser steps.

        Example:
            >>> [round(DensitySchedule(0.1).density(steps, 100), 3) for steps in (0, 25, 50, 100)]
            [1.0, 0.55, 0.1, 0.1]
        """
        begin, end = self.begin * total, self.end * total
        if steps >= end:
            return self.target
        way = max(0.0, (steps - begin) / (end - begin))
        match self.course:
            case "linear":
                return 1 + (self.target - 1) * way
            case "cubic":
                return self.target + (1 - self.target) * (1 - way) ** 3
            case "exponential":
                return float(self.target**way)

    def sharkfin(self, steps: int, total: int) -> float:
        """Return the factor `sqrt(target / density)` of the learning rate, 1 at full sparsity."""
        return math.sqrt(self.target / self.density(steps, total))
