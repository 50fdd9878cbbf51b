"""Pictures for people: what one sees on the images that a model reads."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from impact_lightning.data.module import ImageDataModule
from impact_lightning.types import Key, UserError

RGB = NDArray[np.uint8]  # (h, w, 3)


def pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> RGB:
    """Return what one sees on images `(B, C, h, w)` of bytes, or of floats that are normalised: `(B, h, w, 3)`."""
    if images.is_floating_point():
        m, s = (torch.tensor(part).view(-1, 1, 1) for part in (mean, std))
        images = ((images * s + m) * 255).round().clamp(0, 255).byte()
    shown: RGB = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()  # grey has one channel
    return shown


def thumbnails(data: ImageDataModule, rows: Iterable[int], size: tuple[int, int]) -> dict[int, RGB]:
    """Return pictures of test images by row, `size` pixels high and wide; those that cannot be read are left out."""
    split, found = data.split("test"), dict[int, RGB]()
    for row in sorted({row for row in rows if row >= 0}):
        try:
            images = split.__getitems__([Key(0, row)]).batch.images
        except UserError:  # the test is over: a picture is not worth losing the rest
            continue
        for picture in pixels(images, data.mean, data.std):
            found[row] = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.LANCZOS))
    return found


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in one style, whatever the user's is; letters that the font has not got are drawn as boxes."""
    from matplotlib import style

    with style.context(["default", {"font.size": 9, "svg.hashsalt": "0"}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
