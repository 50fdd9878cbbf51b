"""Shards: activations on disk, one plain `.npy` file for each site of each shard, read through memory maps."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from impact_lightning.activations.manifest import (
    INDEX,
    Configuration,
    Manifest,
    Shard,
    Stored,
    canonical,
    read_json,
    read_manifest,
    read_shard,
    save,
)
from impact_lightning.types import UserError

SAMPLE_BLOCKS, SAMPLE_ROWS = 256, 256  # of the sample for the statistics
CHUNK = 1024  # rows under one checksum
Array = NDArray[Any]


def array_path(root: Path, name: str, number: int) -> Path:
    """Return the file of one array of one shard."""
    return root / name / f"{number:05}.npy"


def record_path(root: Path, number: int) -> Path:
    """Return the file that says that a shard is complete."""
    return root / "shards" / f"{number:05}.json"


def write_shard(root: Path, number: int, arrays: dict[str, Array], configuration: str) -> None:
    """Write the arrays of a shard, and at last its record: without it, nothing is there."""
    stored = {name: _write(array_path(root, name, number), array) for name, array in arrays.items()}
    shard = Shard(len(arrays[INDEX]), stored)
    content = {"hash": configuration, "rows": shard.rows, "arrays": {name: vars(one) for name, one in stored.items()}}
    save(record_path(root, number), lambda file: file.write(canonical(content).encode()))


def read_record(root: Path, number: int, configuration: str) -> Shard:
    """Return what a shard is said to hold; a shard of another configuration is refused."""
    path = record_path(root, number)
    content = read_json(path, "the shard is not complete; run `extract` again")
    if content.get("hash") != configuration:
        raise UserError(
            f"{path} was written with another configuration (model, weights, images, sites, tokens, dtype or sizes); "
            f"remove {root}, or choose another folder"
        )
    return read_shard(content)


class Shards:
    """A complete set of shards as one table of rows.

    Opening reads the manifest and compares the size of every file. Rows are compared with their checksums when they
    are first read, so that no wrong number is ever used and no time goes into bytes that nobody reads.

    Args:
        root: Folder that `extract` wrote.
        manifest: Its manifest; by default the file.
    """

    def __init__(self, root: Path, manifest: Manifest | None = None) -> None:
        self.root = root
        self.manifest = read_manifest(root) if manifest is None else manifest
        self.starts = np.cumsum([0, *(shard.rows for shard in self.manifest.shards)])
        for number, shard in enumerate(self.manifest.shards):
            for name, stored in shard.arrays.items():
                check_size(array_path(root, name, number), stored)
        self._maps: dict[tuple[str, int], Array] = {}
        self._is_checked: dict[tuple[str, int], NDArray[np.bool_]] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.starts[-1])

    def columns(self, name: str) -> tuple[int, np.dtype[Any]]:
        """Return the width of an array and the type of its numbers."""
        width, dtype = self.manifest.configuration.columns(name)
        return width, np.dtype(dtype)

    def read(self, name: str, start: int, stop: int) -> Iterator[tuple[int, Array]]:
        """Yield the rows `[start, stop)` of an array: memory-mapped pieces `(n, D)`, and the row where each begins."""
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        while start < stop:
            begin, end = self.starts[first], self.starts[first + 1]
            upto = min(stop, int(end))
            if upto > start:  # a shard whose images were all damaged is empty
                yield start, self._rows(name, first, start - int(begin), upto - int(begin))
            start, first = upto, first + 1

    def copy(self, name: str, start: int, stop: int) -> Array:
        """Return the rows `[start, stop)` of an array in memory `(stop - start, D)`."""
        return np.concatenate([rows for _, rows in self.read(name, start, stop)])

    def sample(self, site: str) -> Tensor:
        """Return the rows of blocks that are drawn once and for all, or every row of a small set, `(n, D)`."""
        if len(self) <= SAMPLE_BLOCKS * SAMPLE_ROWS:
            return torch.from_numpy(self.copy(site, 0, len(self)))
        starts = np.random.default_rng(0).choice(len(self) // SAMPLE_ROWS, SAMPLE_BLOCKS, replace=False) * SAMPLE_ROWS
        blocks = [self.copy(site, int(start), int(start) + SAMPLE_ROWS) for start in np.sort(starts)]
        return torch.from_numpy(np.concatenate(blocks))

    def forget(self) -> None:
        """Close the memory maps: pages that were read count as memory of the process as long as a map is open."""
        self._maps.clear()

    def _rows(self, name: str, number: int, start: int, stop: int) -> Array:
        key = (name, number)
        shard, path = self.manifest.shards[number], array_path(self.root, name, number)
        if key not in self._maps:
            self._maps[key] = map_array(path, shard.rows, *self.columns(name))
        array, checks = self._maps[key], shard.arrays[name].crc32
        is_checked = self._is_checked.setdefault(key, np.zeros(len(checks), np.bool_))
        for chunk in range(start // CHUNK, -(-stop // CHUNK)):
            if not is_checked[chunk]:
                check_chunk(path, array, chunk, checks)
                is_checked[chunk] = True
        return array[start:stop]


def check_shard(root: Path, number: int, shard: Shard, configuration: Configuration) -> None:
    """Read all of a shard; refuse it if a byte is not what was written."""
    for name, stored in shard.arrays.items():
        path = array_path(root, name, number)
        check_size(path, stored)
        width, dtype = configuration.columns(name)
        array = map_array(path, shard.rows, width, np.dtype(dtype))
        for chunk in range(len(stored.crc32)):
            check_chunk(path, array, chunk, stored.crc32)


def map_array(path: Path, rows: int, width: int, dtype: np.dtype[Any]) -> Array:
    """Open a `.npy` file as a memory map; another shape or type than the manifest's is refused."""
    try:
        array: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `extract` again") from error
    if array.shape != (rows, width) or array.dtype != dtype:
        raise UserError(
            f"{path} is damaged: it holds {array.shape} {array.dtype} instead of {(rows, width)} {dtype}; "
            "run `extract` again"
        )
    return np.asarray(array)  # the same map without the overhead of np.memmap's slices


def check_size(path: Path, stored: Stored) -> None:
    """Refuse a file that is missing or has another size."""
    size = path.stat().st_size if path.is_file() else None
    if size != stored.size:
        found = "is missing" if size is None else f"was cut short or changed: {size} bytes instead of {stored.size}"
        raise UserError(f"{path} {found}; run `extract` again")


def check_chunk(path: Path, array: Array, chunk: int, checks: list[str]) -> None:
    """Refuse rows that are not those that were written."""
    rows = array[chunk * CHUNK : (chunk + 1) * CHUNK]
    if crc32(rows) != checks[chunk]:
        raise UserError(
            f"{path} is damaged: rows {chunk * CHUNK} to {chunk * CHUNK + len(rows) - 1} do not have their checksum; "
            "run `extract` again"
        )


def crc32(rows: Array) -> str:
    """Return the CRC-32 of the bytes of rows in C order, in hexadecimal digits.

    Example:
        >>> crc32(np.frombuffer(b"123456789", np.uint8))
        'cbf43926'
    """
    return f"{zlib.crc32(rows.data):08x}"


def _write(path: Path, array: Array) -> Stored:
    for left_by_a_kill in path.parent.glob(f".{path.name}.*.tmp"):
        left_by_a_kill.unlink()
    save(path, lambda file: np.save(file, array))
    chunks = [crc32(array[start : start + CHUNK]) for start in range(0, len(array), CHUNK)]
    return Stored(path.stat().st_size, chunks)
