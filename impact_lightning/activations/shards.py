"""Shards: activations on disk, one plain `.npy` file for each site of each shard."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
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
from impact_lightning.activations.stored_array import CHUNK, Span, StoredArray, crc32
from impact_lightning.activations.stored_array import Array as Array
from impact_lightning.data.order import Rows
from impact_lightning.types import UserError

SAMPLE_BLOCKS, SAMPLE_ROWS = 256, 256  # of the sample for the statistics


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
        self.arrays = [
            stored_arrays(root, number, shard, self.manifest.configuration)
            for number, shard in enumerate(self.manifest.shards)
        ]
        for arrays in self.arrays:
            for array in arrays.values():
                array.check_size()

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.starts[-1])

    @cached_property
    def per_image(self) -> int:
        """Return how many tokens of each image are kept, t."""
        image = self.rows(INDEX, np.arange(min(self.manifest.configuration.origin.sequence, len(self))))[:, 0]
        return int((image == image[0]).sum())

    def memory(self, name: str, rows: int) -> Array:
        """Return memory for rows of an array `(n, D)`."""
        width, dtype = self.manifest.configuration.columns(name)
        return np.empty((rows, width), dtype)

    def read(self, name: str, spans: Iterable[Span]) -> None:
        """Fill each memory with the rows of an array from its start on; starts ascend, or files are opened again."""
        for number, parts in groupby(self._parts(spans), key=itemgetter(0)):
            self.arrays[number][name].read(part for _, part in parts)

    def rows(self, name: str, rows: Rows) -> Tensor:
        """Return rows of an array in ascending order `(n, D)`, in new memory."""
        found = self.memory(name, len(rows))
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1  # neighbours are read together
        runs = zip(np.split(rows, cuts), np.split(found, cuts), strict=True)
        self.read(name, ((int(run[0]), memory) for run, memory in runs if len(run)))
        return torch.from_numpy(found)

    def sample(self, site: str) -> Tensor:
        """Return the rows of blocks that are drawn once and for all, or every row of a small set, `(n, D)`."""
        if len(self) <= SAMPLE_BLOCKS * SAMPLE_ROWS:
            return self.rows(site, np.arange(len(self)))
        blocks = np.random.default_rng(0).choice(len(self) // SAMPLE_ROWS, SAMPLE_BLOCKS, replace=False)
        return self.rows(site, (np.sort(blocks)[:, None] * SAMPLE_ROWS + np.arange(SAMPLE_ROWS)).ravel())

    def _parts(self, spans: Iterable[Span]) -> Iterator[tuple[int, Span]]:
        """Cut spans at the ends of shards; yield the number of the shard and the span inside it."""
        for start, memory in spans:
            number = int(np.searchsorted(self.starts, start, side="right")) - 1
            while len(memory):
                first, end = self.starts[number : number + 2].tolist()
                n = min(len(memory), end - start)
                if n:  # else the shard has no rows
                    yield number, (start - first, memory[:n])
                start, memory, number = start + n, memory[n:], number + 1


def stored_arrays(root: Path, number: int, shard: Shard, configuration: Configuration) -> dict[str, StoredArray]:
    """Return the arrays of a shard by name; the files are not opened."""
    chunks = -(-shard.rows // CHUNK)
    names = {INDEX, *configuration.origin.sites}
    if shard.arrays.keys() != names or any(len(stored.crc32) != chunks for stored in shard.arrays.values()):
        raise UserError(f"{root}: what is said of shard {number} does not fit its rows and sites; run `extract` again")
    return {
        name: StoredArray(array_path(root, name, number), shard.rows, *configuration.columns(name), stored)
        for name, stored in shard.arrays.items()
    }


def check_shard(root: Path, number: int, shard: Shard, configuration: Configuration) -> None:
    """Read all of a shard; refuse it if a byte is not what was written."""
    for array in stored_arrays(root, number, shard, configuration).values():
        array.check()


def _write(path: Path, array: Array) -> Stored:
    for left_by_a_kill in path.parent.glob(f".{path.name}.*.tmp"):
        left_by_a_kill.unlink()
    save(path, lambda file: np.save(file, array))
    chunks = [crc32(array[start : start + CHUNK]) for start in range(0, len(array), CHUNK)]
    return Stored(path.stat().st_size, chunks)
