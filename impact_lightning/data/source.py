"""What a source of images is: encoded files with labels, from wherever they are stored."""

import hashlib
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from impact_lightning.data.subset import Rows

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # what Pillow is asked to recognise, the usual one first
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class Encoded(NamedTuple):
    """One sample as it is stored."""

    data: bytes
    label: int


class Source(Protocol):
    """The samples of a split, still encoded."""

    class_names: list[str]

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def __getitem__(self, row: int) -> Encoded:
        """Read one sample; `OSError` where it cannot be read."""
        ...

    def name(self, row: int) -> str:
        """Return what a person calls the sample: its file, or its place in one."""
        ...

    def fingerprint(self, rows: Rows) -> str:
        """Return what identifies these samples without reading them."""
        ...


@runtime_checkable
class Indexed(Protocol):
    """A source with random access: all labels are known before a sample is read."""

    labels: Rows  # (N,)


class Collection(Protocol):
    """A root that holds splits."""

    def has(self, split: str) -> bool:
        """Return whether there is a split of that name."""
        ...

    def open(self, split: str) -> Source:
        """Return the samples of a split."""
        ...


def fingerprint(names: NDArray[np.bytes_], sizes: Rows, labels: Rows, class_names: list[str]) -> str:
    """Return a hash over the relative names, sizes in bytes and labels of samples `(N,)`, and the names of classes."""
    digest = hashlib.sha256("\0".join(class_names).encode(errors="surrogateescape"))
    for part in (b"\0".join(names), sizes.astype(np.int64).tobytes(), labels.astype(np.int64).tobytes()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
