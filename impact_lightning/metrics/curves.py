"""Curves: how the score of a model changes while an image is removed, or comes back, in the order of its relevance."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from impact_lightning.metrics.image_mean import ImageMean
from impact_lightning.results import Constant
from impact_lightning.types import UserError


class Curves(NamedTuple):
    """One curve for each image, and everything that defines it."""

    values: Tensor  # (B, S) float64, the score at each point
    fractions: Tensor  # (S,) float64, share of the units that have changed since the start
    mass: Tensor  # (B, S) float64, relevance of the units that are removed at each point
    clean: Tensor  # (B,) float64, the score of the image itself
    ties: Tensor  # (B,) int64, units whose place in the order the raster decided
    is_constant: Tensor  # (B,) bool, maps without any order of their own
    rows: Tensor  # (B,) int64, numbers of the images in their data set
    protocol: dict[str, Constant]  # with its `name`, its `version` and the `curve`


class CurveScore(ImageMean):
    """Mean over images of a number that curves have, with its bootstrap interval.

    Args:
        score: Turns curves into one number for each image `(B,)`.
        curves: Names of the curves that it takes.
        draws: Number of draws of the bootstrap.
        seed: Their seed; metrics of one seed are compared in pairs.
    """

    def __init__(self, score: Callable[..., Tensor], *curves: str, draws: int = 200, seed: int = 0) -> None:
        super().__init__(draws=draws, seed=seed)
        self.score = score
        self.curves = curves
        self.protocol: dict[str, Constant] | None = None

    def update(self, curves: Mapping[str, Curves]) -> None:  # type: ignore[override]  # what an engine returns
        """Add the curves of some images, by name."""
        missing = [name for name in self.curves if name not in curves]
        if missing:
            raise UserError(f"there is no curve {missing[0]!r}; there are {', '.join(map(repr, curves))}")
        taken = [curves[name] for name in self.curves]
        if self.protocol is None:
            self.protocol = taken[0].protocol
        check_same(self.protocol, taken[0].protocol)
        super().update(self.score(*taken), taken[0].rows)


def check_same(mine: Mapping[str, Constant], theirs: Mapping[str, Constant], *, but: tuple[str, ...] = ()) -> None:
    """Refuse curves of two protocols, whose numbers do not compare."""
    for key in sorted((mine.keys() | theirs.keys()) - set(but)):
        if mine.get(key) != theirs.get(key):
            raise UserError(f"these curves do not compare: {key} is {mine.get(key)!r} and {theirs.get(key)!r}")


def check_pair(first: Curves, second: Curves) -> None:
    """Refuse two curves that differ in more than their order, or are of other images."""
    check_same(first.protocol, second.protocol, but=("curve",))
    if not torch.equal(first.rows, second.rows):
        raise UserError("these curves do not compare: they are of other images")
