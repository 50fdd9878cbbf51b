"""A grid of factors: every combination of a few finite factors, numbered once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from impact_lightning.types import UserError


@dataclass(frozen=True)
class FactorGrid:
    """All combinations of some factors in row-major order, the last factor fastest.

    Example:
        >>> grid = FactorGrid(("shape", "x"), (2, 3), levels=(("square", "heart"), ()))
        >>> grid.factors_of(np.array([0, 4]))
        array([[0, 0],
               [1, 1]])
        >>> grid.class_names("shape")
        ['square', 'heart']

    Args:
        names: Name of each factor.
        sizes: Number of levels of each factor.
        levels: Names of the levels of each factor; where they are empty, and by default, levels are numbered.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    levels: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        """Refuse fields that do not fit each other."""
        if len(self.names) != len(self.sizes):
            raise ValueError(f"{len(self.names)} factor names {self.names} for {len(self.sizes)} sizes {self.sizes}")
        if self.levels and any(named and len(named) != n for n, named in zip(self.sizes, self.levels, strict=True)):
            raise ValueError(f"level names {self.levels} do not fit factors of sizes {self.sizes}")

    def __len__(self) -> int:
        """Return the number of combinations."""
        return math.prod(self.sizes)

    def refuse_outside(self, index: NDArray[np.int64]) -> None:
        """Refuse numbers that no combination has."""
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise ValueError(f"index from {index.min()} to {index.max()}, but the grid goes from 0 to {len(self) - 1}")

    def factors_of(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the levels `(B, n)` of the combinations numbered `index` `(B,)`."""
        self.refuse_outside(index)
        levels: NDArray[np.int64] = index[:, None] // strides(self.sizes) % np.array(self.sizes)
        return levels

    def index_of(self, factors: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers `(B,)` of the combinations with levels `factors` `(B, n)`."""
        if ((factors < 0) | (factors >= self.sizes)).any():
            raise ValueError(f"a level lies outside its factor; the factors {self.names} have sizes {self.sizes}")
        return factors @ strides(self.sizes)

    def label_of(self, factors: NDArray[np.int64], names: str | Sequence[str]) -> NDArray[np.int64]:
        """Return one class per combination of the named factors, the last named one fastest.

        Args:
            factors: `(B, n)` levels of all factors.
            names: One factor, or several whose product is the class.

        Returns:
            `(B,)` classes from 0 to `n_classes(names) - 1`.
        """
        columns = self._columns(names)
        return factors[:, columns] @ strides([self.sizes[column] for column in columns])

    def n_classes(self, names: str | Sequence[str]) -> int:
        """Return the number of classes that `label_of` tells apart."""
        return math.prod(self.sizes[column] for column in self._columns(names))

    def class_names(self, names: str | Sequence[str]) -> list[str]:
        """Return a readable name per class: `cube` for one factor, `shape=cube scale=3` for several."""
        columns = self._columns(names)
        if len(columns) == 1:
            return list(self._levels(columns[0]))
        named = [[f"{self.names[column]}={level}" for level in self._levels(column)] for column in columns]
        return [" ".join(levels) for levels in product(*named)]

    def _columns(self, names: str | Sequence[str]) -> list[int]:
        names = [names] if isinstance(names, str) else list(names)
        if not names:
            raise UserError(f"no factor named; known factors: {', '.join(self.names)}")
        for name in names:
            if name not in self.names:
                raise UserError(f"unknown factor '{name}'; known factors: {', '.join(self.names)}")
        return [self.names.index(name) for name in names]

    def _levels(self, column: int) -> tuple[str, ...]:
        named = self.levels[column] if self.levels else ()
        return named or tuple(str(level) for level in range(self.sizes[column]))


def strides(sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return how far apart in the numbering two neighbouring levels of each factor are."""
    return np.array([math.prod(sizes[i + 1 :]) for i in range(len(sizes))], dtype=np.int64)
