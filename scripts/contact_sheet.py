"""Draws docs/scenes.png: sprites, rooms, and rooms whose object moves, with the outline of its mask."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scene_source import SceneSource
from impact_lightning.data.sprites import Sprites

COLUMNS = 12
ZOOM = 2


def draw(path: Path) -> None:
    """Write the contact sheet to `path`."""
    sheets = {
        "Sprites": sheet(Sprites(), rows=2),
        "Rooms": sheet(Rooms(), rows=4),
        "Rooms with a moving object, mask outlined": sheet(Rooms(move_object=True), rows=3, outline=True),
    }
    heights = [len(pixels) for pixels in sheets.values()]
    figure, axes = plt.subplots(len(sheets), figsize=(8, 6.6), height_ratios=heights, layout="constrained")
    for axis, (title, pixels) in zip(axes, sheets.items(), strict=True):
        axis.imshow(pixels)
        axis.set_title(title, loc="left")
        axis.axis("off")
    figure.savefig(path, dpi=100)


def sheet(source: SceneSource, *, rows: int, outline: bool = False) -> NDArray[np.uint8]:
    """Return random images of a source in rows, as one picture `(h, w, 3)`."""
    index = np.random.default_rng(0).choice(len(source), rows * COLUMNS, replace=False)
    images, masks = source.render(index)
    if outline and masks is not None:
        images = np.where(outlines(masks)[:, None], 255, images).astype(np.uint8)
    images = np.broadcast_to(images, (len(images), 3, *images.shape[2:])).repeat(ZOOM, 2).repeat(ZOOM, 3)
    images = np.pad(images, [(0, 0), (0, 0), (2, 2), (2, 2)], constant_values=255)
    tiles = images.reshape(rows, COLUMNS, *images.shape[1:])  # (rows, columns, 3, h, w)
    return tiles.transpose(0, 3, 1, 4, 2).reshape(rows * images.shape[2], COLUMNS * images.shape[3], 3)


def outlines(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels `(B, h, w)` of each mask that touch a pixel outside of it."""
    padded = np.pad(masks, [(0, 0), (1, 1), (1, 1)])
    inside = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return masks & ~inside


if __name__ == "__main__":
    draw(Path(__file__).parents[1] / "docs" / "scenes.png")
