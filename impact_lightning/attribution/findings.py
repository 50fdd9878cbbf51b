"""What was found of maps: every number beside that of maps that look at no model, with its interval."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from impact_lightning.attribution.study import RANDOMISED, Key, Scores
from impact_lightning.metrics.bootstrap import image_draws, interval_of_draws
from impact_lightning.metrics.ratio import ratio
from impact_lightning.results import Interval, Null

DRAWS = 1000
BASELINE = "random"  # the method that all others are compared with


@dataclass(frozen=True)
class Finding:
    """A mean over images and what is needed to judge it."""

    measure: str
    value: float
    method: str
    n: int
    null: Null | None
    interval: Interval | None
    notes: tuple[str, ...] = ()


class Means:
    """Means over images and their bootstrap intervals; all of them over the same draws, so that they compare in pairs.

    Args:
        rows: The images `(N,)`.
        seed: Seed of the draws.
    """

    def __init__(self, rows: Tensor, seed: int) -> None:
        self.rows = rows
        self.draws = image_draws(rows, draws=DRAWS, seed=seed)  # (1 + R, N)

    def on_all(self, scores: Scores) -> Tensor:
        """Return numbers of all images `(N,)`; nan where there is none."""
        values = torch.full((len(self.rows),), torch.nan, dtype=torch.float64)
        values[torch.searchsorted(self.rows, scores.rows)] = scores.values
        return torch.where(values.isfinite(), values, torch.nan)

    def __call__(self, measure: str, method: str, values: Tensor, null: Null | None, expected: int) -> Finding:
        """Return the mean of numbers `(N,)`, of which `expected` should be defined."""
        is_defined = ~values.isnan()
        of_draws = ratio(self.draws @ values.nan_to_num(0.0), self.draws @ is_defined.double())  # (1 + R,)
        n = int(is_defined.sum())
        notes = (f"undefined on {expected - n} images, which are left out",) if n < expected else ()
        interval = interval_of_draws(of_draws) if n > 1 else None
        return Finding(measure, float(of_draws[0]), method, n, null, interval, notes)

    def of(self, values: Tensor) -> float:
        """Return the mean of numbers that are defined."""
        return float(values.nanmean())


def findings(scores: Mapping[Key, Scores], seed: int) -> Iterator[Finding]:
    """Yield the mean of every number, and by how much it is above that of random maps, image by image.

    Args:
        scores: By method and measure.
        seed: Seed of the draws.
    """
    means = Means(max((one.rows for one in scores.values()), key=len), seed)
    table = {key: means.on_all(one) for key, one in scores.items()}
    for (method, measure), values in table.items():
        n = len(scores[method, measure].rows)
        by_chance = table.get((BASELINE, measure)) if method != BASELINE else None
        null = None if by_chance is None else Null(means.of(by_chance), "random maps")
        if measure.startswith("likeness"):
            null = Null(0.0, "maps in an order of their own")
        yield means(measure, method, values, null, n)
        if by_chance is not None and not measure.startswith("likeness"):
            yield means(f"{measure}_above_random", method, values - by_chance, Null(0.0, "random maps"), n)
        with_model = table.get((method, measure.removeprefix(RANDOMISED)))
        if measure.startswith(RANDOMISED) and with_model is not None:
            what = f"{measure.removeprefix(RANDOMISED)}_due_to_the_model"
            null = Null(0.0, "the same method on the model with every parameter drawn anew")
            yield means(what, method, with_model - values, null, n)


def differences(ours: Mapping[Key, Scores], theirs: Mapping[Key, Scores], seed: int) -> Iterator[Finding]:
    """Yield by how much the numbers of one model are above those of another one, on the same images."""
    means = Means(max((one.rows for one in ours.values()), key=len), seed)
    ahead = {key: means.on_all(one) - means.on_all(theirs[key]) for key, one in ours.items() if key in theirs}
    for (method, measure), values in ahead.items():
        by_chance = ahead.get((BASELINE, measure))
        null = None if by_chance is None or method == BASELINE else Null(means.of(by_chance), "of random maps")
        yield means(measure, method, values, null, len(ours[method, measure].rows))
