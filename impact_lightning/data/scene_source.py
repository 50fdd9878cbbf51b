"""What rendered scenes and scene files have in common."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from impact_lightning.data.factors import FactorGrid


class SceneSource(ABC):
    """Images of a grid of known factors; every image is a pure function of its index."""

    version: int = 1  # to be raised when an image of the same index changes
    grid: FactorGrid  # the factors, in the order that numbers the images
    channels: int  # colour channels: 1 or 3
    size: int  # height and width of an image in pixels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.grid)

    @abstractmethod
    def render(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Return images `(B, channels, size, size)` and object masks `(B, size, size)` of `index` `(B,)`.

        A mask marks every pixel that the object changes; it is None where the object's pixels are not known.
        """
