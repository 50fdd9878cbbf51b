"""What was found of maps: every number beside that of maps that look at no model, with its interval."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from impact_lightning.attribution.study import RANDOMISED, Key, Scores
from impact_lightning.metrics.bootstrap import image_draws, interval_of_draws
from impact_lightning.metrics.ratio import ratio
from impact_lightning.results import Interval, Null

DRAWS = 1000
AT_ONCE = 2**22  # counts of draws, or numbers of images, that are in memory as float64
BASELINE = "random"  # the method that all others are compared with
ABOVE_RANDOM = "_above_random"  # behind a measure: by how much it is above that of random maps


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


class Numbers(NamedTuple):
    """Numbers of images whose mean is wanted, and what a finding says beside it."""

    measure: str
    method: str
    values: Tensor  # (N,) nan where there is none
    null: Null | None
    expected: int  # how many should be defined


class Means:
    """Means over images and their bootstrap intervals; all of them over the same draws, so that they compare in pairs.

    Draws are kept as bytes, 1 kB an image, and are numbers a few at a time.

    Args:
        rows: The images `(N,)`.
        seed: Seed of the draws.
    """

    def __init__(self, rows: Tensor, seed: int) -> None:
        self.rows = rows
        parts = rows.split(max(1, AT_ONCE // DRAWS))
        self.draws = torch.cat([image_draws(part, draws=DRAWS, seed=seed).byte() for part in parts], dim=1)  # (1+R, N)

    def on_all(self, scores: Scores) -> Tensor:
        """Return numbers of all images `(N,)`; nan where there is none."""
        values = torch.full((len(self.rows),), torch.nan, dtype=torch.float64)
        values[torch.searchsorted(self.rows, scores.rows)] = scores.values
        return torch.where(values.isfinite(), values, torch.nan)

    def __call__(self, wanted: Iterable[Numbers]) -> Iterator[Finding]:
        """Yield the means of numbers."""
        wanted = iter(wanted)
        while some := list(islice(wanted, max(1, AT_ONCE // max(1, len(self.rows))))):
            values = torch.stack([one.values for one in some], dim=1)  # (N, K)
            is_defined = ~values.isnan()
            of_draws = ratio(self._sums(values.nan_to_num(0.0)), self._sums(is_defined.double()))  # (1 + R, K)
            for one, n, means in zip(some, is_defined.sum(0).tolist(), of_draws.unbind(1), strict=True):
                left_out = one.expected - n
                notes = (f"undefined on {left_out} images, which are left out",) if left_out > 0 else ()
                interval = interval_of_draws(means) if n > 1 else None
                yield Finding(one.measure, float(means[0]), one.method, n, one.null, interval, notes)

    def _sums(self, values: Tensor) -> Tensor:
        """Return the sums of numbers `(N, K)` over the images of each draw `(1 + R, K)`."""
        parts = self.draws.split(max(1, AT_ONCE // max(1, len(self.rows))))
        return torch.cat([part.double() @ values for part in parts])

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
    yield from means(_numbers(scores, means))


def _numbers(scores: Mapping[Key, Scores], means: Means) -> Iterator[Numbers]:
    table = {key: means.on_all(one) for key, one in scores.items()}
    for (method, measure), values in table.items():
        n = len(scores[method, measure].rows)
        by_chance = table.get((BASELINE, measure)) if method != BASELINE else None
        null = None if by_chance is None else Null(means.of(by_chance), "random maps")
        if measure.startswith("likeness"):
            null = Null(0.0, "maps in an order of their own")
        yield Numbers(measure, method, values, null, n)
        if by_chance is not None and not measure.startswith("likeness"):
            yield Numbers(measure + ABOVE_RANDOM, method, values - by_chance, Null(0.0, "random maps"), n)
        with_model = table.get((method, measure.removeprefix(RANDOMISED)))
        if measure.startswith(RANDOMISED) and with_model is not None:
            what = f"{measure.removeprefix(RANDOMISED)}_due_to_the_model"
            null = Null(0.0, "the same method on the model with every parameter drawn anew")
            yield Numbers(what, method, with_model - values, null, n)


def differences(ours: Mapping[Key, Scores], theirs: Mapping[Key, Scores], seed: int) -> Iterator[Finding]:
    """Yield by how much a model is above another one, on the same images, and by how much beyond random maps."""
    means = Means(max((one.rows for one in ours.values()), key=len), seed)
    yield from means(_differences(ours, theirs, means))


def _differences(ours: Mapping[Key, Scores], theirs: Mapping[Key, Scores], means: Means) -> Iterator[Numbers]:
    ahead = {key: means.on_all(one) - means.on_all(theirs[key]) for key, one in ours.items() if key in theirs}
    for (method, measure), values in ahead.items():
        by_chance = ahead.get((BASELINE, measure))
        n = len(ours[method, measure].rows)
        if by_chance is None or method == BASELINE:
            yield Numbers(measure, method, values, None, n)
            continue
        yield Numbers(measure, method, values, Null(means.of(by_chance), "of random maps"), n)
        if measure.startswith("likeness"):  # of two maps: random ones are no null of it
            continue
        beyond = Null(0.0, "no difference beyond that of random maps")
        yield Numbers(measure + ABOVE_RANDOM, method, values - by_chance, beyond, n)
