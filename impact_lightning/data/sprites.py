"""Rendered sprites: the grid of dSprites without its file."""

from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from impact_lightning.data.factors import FactorGrid
from impact_lightning.data.scene_source import SceneSource

Plane = NDArray[np.float64]

SIZE = 64
SCALES = np.linspace(0.5, 1, 6)
ANGLES = np.linspace(0, 2 * np.pi, 40)  # both ends, as in the file: the first and the last picture are the same
N_POSITIONS = 32
RADIUS = 15  # pixels from the centre of a sprite to its farthest pixel, at every scale and angle
DSPRITES_GRID = FactorGrid(
    names=("shape", "scale", "orientation", "position_x", "position_y"),
    sizes=(3, len(SCALES), len(ANGLES), N_POSITIONS, N_POSITIONS),
    levels=(("square", "ellipse", "heart"), (), (), (), ()),
)


class Sprites(SceneSource):
    """White squares, ellipses and hearts on black: 3 shapes, 6 scales, 40 orientations, 32 x 32 positions.

    The images are numbered like those of the dSprites file, whose constant colour is left out. One step of position is
    one pixel, so that a sprite is drawn once and moved without loss; the whole sprite is always inside the image.
    """

    grid = DSPRITES_GRID
    channels = 1
    size = SIZE

    def __init__(self) -> None:
        self._canvases = draw_canvases()

    def render(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return images `(B, 1, 64, 64)` of 0 and 255, and masks `(B, 64, 64)` of the sprites."""
        shape, scale, orientation, x, y = self.grid.factors_of(index).T
        windows = sliding_window_view(self._canvases, (SIZE, SIZE), axis=(3, 4))
        # A window that starts further left shows the sprite further right.
        masks = windows[shape, scale, orientation, N_POSITIONS - 1 - y, N_POSITIONS - 1 - x]  # (B, 64, 64)
        return np.negative(masks.view(np.uint8))[:, None], masks  # -1 is 255


def draw_canvases() -> NDArray[np.bool_]:
    """Return every sprite in the middle of an empty canvas `(3, 6, 40, 95, 95)` that holds all windows on it."""
    margin = (SIZE + N_POSITIONS - 1) // 2 - RADIUS
    return np.pad(draw_sprites(SCALES, ANGLES), [(0, 0)] * 3 + [(margin, margin)] * 2)


def draw_sprites(scales: Plane, angles: Plane) -> NDArray[np.bool_]:
    """Return all shapes at some scales and angles, as `(3, scales, angles, 31, 31)`.

    Args:
        scales: Sizes, 1 is the largest that fits.
        angles: Counter-clockwise turns in radians.
    """
    right = np.arange(-RADIUS, RADIUS + 1.0)
    up = -right[:, None]
    scale, angle = scales[:, None, None, None], angles[:, None, None]
    x = (np.cos(angle) * right + np.sin(angle) * up) / scale  # (scales, angles, 31, 31)
    y = (np.cos(angle) * up - np.sin(angle) * right) / scale
    shapes: tuple[Callable[[Plane, Plane], NDArray[np.bool_]], ...] = (square, ellipse, heart)
    return np.stack([shape(x, y) for shape in shapes])


def square(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """Return which points, in pixels from the centre, lie in the square."""
    return np.maximum(abs(x), abs(y)) <= 10.8  # no pixel centre lies on an edge, where rounding would decide


def ellipse(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """Return which points, in pixels from the centre, lie in the ellipse."""
    return (x / 15.2) ** 2 + (y / 8.2) ** 2 <= 1


def heart(x: Plane, y: Plane) -> NDArray[np.bool_]:
    """Return which points, in pixels from the centre, lie in the heart (x² + y² - 1)³ = x² y³."""
    x, y = x / 12, y / 12 + 0.25  # the middle of the circle around the whole heart
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
