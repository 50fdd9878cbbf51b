"""A split of images: samples of a source, decoded and transformed into batches of bytes."""

import io
import struct
import zlib
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from PIL import Image

from impact_lightning.data.loader import Fetched
from impact_lightning.data.source import FORMATS, Encoded, Indexed, Source
from impact_lightning.data.subset import Rows
from impact_lightning.data.transforms import Transform
from impact_lightning.types import ImageBatch, Key, UserError

OnError = Literal["fail", "skip"]

# what reading and Pillow's decoders raise on files that are missing, unreadable, cut short or overwritten
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class ImageSet:
    """Some rows of a source.

    Args:
        source: Where the encoded images are.
        rows: Which of them belong to the set, `(N,)`.
        transform: From an RGB picture to pixels.
        size: Height and width of the result.
        on_error: Whether an image that cannot be read ends the run, or is left out and named.
    """

    def __init__(
        self, source: Source, rows: Rows, transform: Transform, size: tuple[int, int], on_error: OnError
    ) -> None:
        self.source = source
        self.rows = rows
        self.transform = transform
        self.size = size
        self.on_error = on_error

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """Return what identifies the images; the files are not read."""
        return self.source.fingerprint(self.rows)

    @property
    def labels(self) -> Rows:
        """Return all labels `(N,)`; a streamed source does not know them before it is read."""
        if not isinstance(self.source, Indexed):
            raise UserError("the labels of a streamed source are not known in advance; use a source with random access")
        return self.source.labels[self.rows]

    def name(self, index: int) -> str:
        """Return what a person calls an image, by its index in a batch."""
        return self.source.name(int(self.rows[index]))

    def __getitems__(self, keys: list[Key]) -> Fetched:
        """Decode one batch into one array, which crosses the border between processes as it is."""
        images = np.empty((len(keys), 3, *self.size), np.uint8)
        labels: list[int] = []
        index: list[int] = []
        damaged: list[str] = []
        for key in keys:
            try:
                sample = self.source[int(self.rows[key.row])]
                image = decode(sample)
            except UserError:  # not the image but what holds it
                raise
            except DAMAGE as error:
                damaged.append(self._damage(key, error))
                continue
            images[len(index)] = self.transform(image, key)
            labels.append(sample.label)
            index.append(key.row)
        batch = ImageBatch(
            images=torch.from_numpy(images[: len(index)]),
            labels=torch.tensor(labels, dtype=torch.int64),
            row=torch.tensor(index, dtype=torch.int64),
        )
        return Fetched(batch, tuple(damaged))

    def _damage(self, key: Key, error: Exception) -> str:
        name = self.name(key.row)
        if self.on_error == "fail":
            raise UserError(
                f"{name}: cannot be read ({error}); mend or remove it, or set data.on_error to skip"
            ) from error
        return name


def decode(sample: Encoded) -> Image.Image:
    """Return the picture in RGB."""
    image: Image.Image = Image.open(io.BytesIO(sample.data), formats=FORMATS)
    image.load()
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image, np.int32) // 257).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
