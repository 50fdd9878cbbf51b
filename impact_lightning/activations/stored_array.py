"""One array of one shard: a plain `.npy` file that is read into memory of the caller, and never believed unchecked."""

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impact_lightning.activations.manifest import Stored
from impact_lightning.types import UserError

CHUNK = 1024  # rows under one checksum
Array = NDArray[Any]
Span = tuple[int, Array]  # the first row, and the memory (n, D) for it and those that follow


class StoredArray:
    """Rows on disk `(N, D)`.

    They are read with system calls and not mapped: a file that is cut short while it is open is an error and no
    signal, other threads run meanwhile, and no page is mapped and unmapped for bytes that are used once.

    Args:
        path: The file.
        rows: How many there are.
        width: Numbers in each.
        dtype: Type of the numbers.
        stored: Its size, and the checksums of its rows.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: str, stored: Stored) -> None:
        self.path = path
        self.shape = rows, width
        self.dtype = np.dtype(dtype)
        self.stored = stored
        self.row_bytes = width * self.dtype.itemsize
        self.offset = stored.size - rows * self.row_bytes  # of the first row
        self._is_known = False  # the header was read
        self._is_checked = np.zeros(len(stored.crc32), np.bool_)

    def check_size(self) -> None:
        """Refuse a file that is missing or has another size."""
        size = self.path.stat().st_size if self.path.is_file() else None
        if size is None:
            raise self._refusal("is missing")
        if size != self.stored.size:
            raise self._refusal(f"was cut short or changed: {size} bytes instead of {self.stored.size}")

    def check(self) -> None:
        """Refuse a file in which any byte is not what was written."""
        self.check_size()
        with self._open() as file:
            for chunk in range(len(self.stored.crc32)):
                self._check_chunk(file, chunk)

    def read(self, spans: Iterable[Span]) -> None:
        """Fill each memory with its rows; those that were not used before are compared with their checksums."""
        with self._open() as file:
            for start, memory in spans:
                for chunk in range(start // CHUNK, (start + len(memory) - 1) // CHUNK + 1):
                    if not self._is_checked[chunk]:
                        self._check_chunk(file, chunk)
                self._fill(file, start, memory)

    @contextmanager
    def _open(self) -> Iterator[FileIO]:
        try:
            with self.path.open("rb", buffering=0) as file:
                if not self._is_known:
                    self._check_header(file)
                yield file
        except OSError as error:
            raise self._refusal(f"cannot be read ({error})") from error

    def _fill(self, file: FileIO, start: int, memory: Array) -> None:
        free, place = memory.view(np.uint8).ravel(), self.offset + start * self.row_bytes  # (n * D * itemsize,)
        while len(free):
            n = os.preadv(file.fileno(), [free.data], place)
            if not n:
                raise self._refusal("was cut short while it was read")
            free, place = free[n:], place + n

    def _check_header(self, file: FileIO) -> None:
        try:
            version = np.lib.format.read_magic(file)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # numpy parses Python, and a flipped bit raises many kinds
            raise self._refusal(f"cannot be read ({error})") from error
        if (version, shape, is_fortran, dtype, file.tell()) != ((1, 0), self.shape, False, self.dtype, self.offset):
            raise self._refusal(f"is damaged: it holds {shape} {dtype} instead of {self.shape} {self.dtype}")
        self._is_known = True

    def _check_chunk(self, file: FileIO, chunk: int) -> None:
        first = chunk * CHUNK
        rows = np.empty((min(CHUNK, self.shape[0] - first), self.shape[1]), self.dtype)
        self._fill(file, first, rows)
        if crc32(rows) != self.stored.crc32[chunk]:
            raise self._refusal(f"is damaged: rows {first} to {first + len(rows) - 1} do not have their checksum")
        self._is_checked[chunk] = True

    def _refusal(self, problem: str) -> UserError:
        return UserError(f"{self.path} {problem}; run `extract` again")


def crc32(rows: Array) -> str:
    """Return the CRC-32 of the bytes of rows in C order, in hexadecimal digits.

    Example:
        >>> crc32(np.frombuffer(b"123456789", np.uint8))
        'cbf43926'
    """
    return f"{zlib.crc32(rows.data):08x}"
