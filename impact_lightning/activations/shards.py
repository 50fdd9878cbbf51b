"""Shards: activations on disk, one plain `.npy` file for each site of each shard, read through memory maps."""

import os
import zlib
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
from impact_lightning.data.order import Rows
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
        self.starts = np.cumsum([0, *(shard.rows for shard in self.manifest.shards)])  # and the end
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

    def rows(self, name: str, rows: Rows) -> Tensor:
        """Return rows of an array in ascending order `(n, D)`, in new memory."""
        width, dtype = self.columns(name)
        found = np.empty((len(rows), width), dtype)
        cuts = np.searchsorted(rows, self.starts)  # the rows of shard i stand at [cuts[i], cuts[i + 1])
        for number in np.flatnonzero(np.diff(cuts)).tolist():
            part = slice(cuts[number], cuts[number + 1])
            local = rows[part] - self.starts[number]
            array = self._checked(name, number, local)
            np.take(array, local, axis=0, out=found[part], mode="clip")  # "raise" would go through a copy
        return torch.from_numpy(found)

    def sample(self, site: str) -> Tensor:
        """Return the rows of blocks that are drawn once and for all, or every row of a small set, `(n, D)`."""
        if len(self) <= SAMPLE_BLOCKS * SAMPLE_ROWS:
            return self.rows(site, np.arange(len(self)))
        blocks = np.random.default_rng(0).choice(len(self) // SAMPLE_ROWS, SAMPLE_BLOCKS, replace=False)
        return self.rows(site, (np.sort(blocks)[:, None] * SAMPLE_ROWS + np.arange(SAMPLE_ROWS)).ravel())

    def read_ahead(self, name: str, starts: Rows, rows: int) -> None:
        """Ask the system to read blocks of so many rows into its page cache, without waiting for them."""
        if not hasattr(os, "posix_fadvise"):  # a system that does not offer it reads when it must
            return
        width, dtype = self.columns(name)
        n_bytes = width * dtype.itemsize
        numbers = np.searchsorted(self.starts, starts, side="right") - 1
        for number in np.unique(numbers).tolist():
            with array_path(self.root, name, number).open("rb") as file:
                for start in (starts[numbers == number] - self.starts[number]).tolist():
                    os.posix_fadvise(file.fileno(), start * n_bytes, rows * n_bytes, os.POSIX_FADV_WILLNEED)

    def forget(self) -> None:
        """Close the memory maps: pages that were read count as memory of the process as long as a map is open."""
        self._maps.clear()

    def _checked(self, name: str, number: int, local: Rows) -> Array:
        """Return an array of a shard, some rows of which are about to be used."""
        key = (name, number)
        if key not in self._maps:
            path = array_path(self.root, name, number)
            self._maps[key] = map_array(path, self.manifest.shards[number].rows, *self.columns(name))
        array, checks = self._maps[key], self.manifest.shards[number].arrays[name].crc32
        is_checked = self._is_checked.setdefault(key, np.zeros(len(checks), np.bool_))
        if not is_checked.all():
            chunks = np.unique(local // CHUNK)
            for chunk in chunks[~is_checked[chunks]].tolist():
                check_chunk(array_path(self.root, name, number), array, chunk, checks)
                is_checked[chunk] = True
        return array


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
