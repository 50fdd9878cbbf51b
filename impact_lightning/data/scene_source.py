"""What rendered scenes and scene files have in common."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .factors import FactorGrid


class SceneSource(Protocol):
    """Images of a grid of known factors; every image is a pure function of its index."""

    @property
    def grid(self) -> FactorGrid:
        """The factors, in the order that numbers the images."""

    @property
    def channels(self) -> int:
        """Colour channels: 1 or 3."""

    @property
    def size(self) -> int:
        """Height and width of an image in pixels."""

    def __len__(self) -> int:
        """Return the number of images."""

    def render(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Return images `(B, channels, size, size)` and object masks `(B, size, size)` of `index` `(B,)`.

        A mask marks every pixel that the object changes; it is None where the object's pixels are not known.
        """
