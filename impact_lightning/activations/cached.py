"""Activations from shards on disk."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from impact_lightning.activations.batch import ActivationBatch, SiteStatistics
from impact_lightning.activations.loader import BufferedLoader, Serve
from impact_lightning.activations.manifest import INDEX, Origin
from impact_lightning.activations.module import ActivationDataModule
from impact_lightning.activations.order import BufferOrder
from impact_lightning.activations.shards import Shards
from impact_lightning.activations.stored_array import Array
from impact_lightning.backbones import Backbone, fingerprint
from impact_lightning.data.module import Split
from impact_lightning.data.order import EvalOrder, Rows
from impact_lightning.ranks import rank_and_world
from impact_lightning.types import UserError

Memory = dict[str, Array]  # the rows of a buffer by array, block after block in ascending order


class CachedActivations(ActivationDataModule):
    """Activations that `extract` has written, shuffled by blocks over the whole set and by rows inside a buffer.

    Args:
        train: Folder of the training split.
        val: Folder of the validation split.
        test: Folder of the test split; None takes that for validation.
        sites: Sites to read, by name; None reads all that are stored.
        backbone: The model that the activations must be of; None takes any.
        batch_size: Rows of one training step over all ranks together.
        eval_batch_size: Rows of one evaluation batch on one rank, at most; it holds whole images, and at least one.
        block_rows: Neighbouring rows that are read together.
        buffer_blocks: Blocks of one buffer, inside which rows are shuffled.
        seed: Seed of the order of the rows.
    """

    def __init__(
        self,
        train: Path,
        val: Path | None = None,
        test: Path | None = None,
        sites: list[str] | None = None,
        backbone: Backbone | None = None,
        batch_size: int = 4096,
        eval_batch_size: int = 4096,
        block_rows: int = 256,
        buffer_blocks: int = 256,
        seed: int = 0,
    ) -> None:
        sizes = {"eval_batch_size": eval_batch_size, "block_rows": block_rows, "buffer_blocks": buffer_blocks}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}")
        self.eval_batch_size = eval_batch_size
        self.block_rows = block_rows
        self.buffer_blocks = buffer_blocks
        paths = {"train": train, "val": val, "test": test or val, "predict": test or val}
        opened = {path: Shards(path) for path in paths.values() if path is not None}
        self.shards = {name: opened[path] for name, path in paths.items() if path is not None}
        self.origin = self.shards["train"].manifest.configuration.origin
        for shards in opened.values():
            _check_same(self.origin, shards.manifest.configuration.origin, shards.root)
        if backbone is not None:
            _check_model(backbone, self.origin, train)
        stored = self.origin.sites
        unknown = sorted(set(sites or ()) - stored.keys())
        if unknown:
            raise UserError(f"data.sites: {train} has no {unknown[0]}; it has {', '.join(stored)}")
        widths = {site: width for site, width in stored.items() if sites is None or site in sites}
        super().__init__(widths=widths, batch_size=batch_size, seed=seed)

    def fingerprint(self, name: Split) -> str:
        """Return what identifies the bytes of a split."""
        return self._split(name).manifest.digest()[:16]

    def notes(self, name: Split) -> tuple[str, ...]:
        """Return what a reader of a number on this split must know."""
        shards = self._split(name)
        missing = shards.manifest.configuration.n_images - len(shards) // shards.per_image
        return (f"{missing} damaged samples left out when the activations were extracted",) if missing else ()

    def protocol(self) -> dict[str, Any]:
        """Return the constants under which numbers on these activations are made."""
        return {**self.origin.protocol(), "dtype": self._split("train").manifest.configuration.dtype}

    def _estimate(self) -> dict[str, SiteStatistics]:
        return self._split("train").manifest.statistics

    @property
    def per_image(self) -> int:
        """Return how many tokens are stored of each image."""
        return self._split("train").per_image

    def class_names(self, name: Split) -> list[str]:
        """Return the labels themselves: shards do not hold their names."""
        shards = self._split(name)
        labels = shards.rows(INDEX, np.arange(len(shards)))[:, 2]
        return [str(label) for label in range(int(labels.max()) + 1)]

    def sample(self, site: str) -> Tensor:
        """Return rows of blocks that are drawn once and for all."""
        return self._split("train").sample(site).float()

    def _train_loader(self) -> BufferedLoader:
        return CachedLoader(
            self._split("train"),
            self.sites,
            batch=self.batch_size,
            block=self.block_rows,
            buffer_blocks=self.buffer_blocks,
            seed=self.seed,
        )

    def _eval_loader(self, name: Split, at_most: int | None = None) -> "CachedEvalLoader":
        return CachedEvalLoader(self._split(name), self.sites, self.eval_batch_size, at_most)

    def _split(self, name: Split) -> Shards:
        if name not in self.shards:
            raise UserError(f"data.{name} is not set: extract the {name} split and give its folder")
        return self.shards[name]


class CachedLoader(BufferedLoader):
    """Endless training batches from shards.

    Each epoch cuts the rows into blocks from a random offset, and deals the shuffled blocks to buffers. While the rows
    of one buffer are served, a thread reads the blocks of the next one.

    Args:
        shards: The rows.
        sites: The sites to read.
        batch: Rows of one step over all ranks together.
        block: Rows that are read together.
        buffer_blocks: Blocks of one buffer, or all of a small set.
        seed: Seed of the order.
    """

    def __init__(
        self, shards: Shards, sites: list[str], *, batch: int, block: int, buffer_blocks: int, seed: int
    ) -> None:
        self.shards = shards
        self.names = [INDEX, *sites]
        self.block = min(block, len(shards))
        self.n_blocks = len(shards) // self.block
        self.buffer_blocks = min(buffer_blocks, self.n_blocks)
        order = BufferOrder(
            rows=self.buffer_blocks * self.block,
            n_buffers=self.n_blocks // self.buffer_blocks,
            batch=batch,
            seed=seed,
        )
        super().__init__(order, shards.manifest.digest()[:16])
        self._spare: list[Memory] = []  # new memory would cost as much as the rows: every page is cleared first

    def plan(self) -> str:
        """Return what decides the order of the rows."""
        return f"{self.order} in blocks of {self.block}"

    def blocks(self, epoch: int, buffer: int) -> Rows:
        """Return the first rows of the blocks of a buffer `(buffer_blocks,)`."""
        generator = np.random.default_rng([self.order.seed, epoch])
        offset = generator.integers(len(self.shards) - self.n_blocks * self.block + 1)  # or a tail was never read
        order = generator.permutation(self.n_blocks)[buffer * self.buffer_blocks : (buffer + 1) * self.buffer_blocks]
        return order * self.block + offset

    def buffers(self, epoch: int, first: int) -> Iterator[Serve]:
        """Serve one buffer after the other; the memory of those that were served is used again."""
        is_left = Event()
        with ThreadPoolExecutor(1) as reader:
            try:
                following = reader.submit(self._read, epoch, first, is_left)
                for buffer in range(first, self.order.n_buffers):
                    memory, places = following.result()
                    if buffer + 1 < self.order.n_buffers:
                        following = reader.submit(self._read, epoch, buffer + 1, is_left)
                    yield partial(_serve, memory, places)
                    self._spare.append(memory)
            finally:
                is_left.set()  # or leaving would wait for a whole buffer

    def _read(self, epoch: int, buffer: int, is_left: Event) -> tuple[Memory, Rows]:
        """Return the rows of a buffer and the places of this rank's part of each batch in it, `(steps, n)`."""
        rank, world = rank_and_world()
        blocks = self.blocks(epoch, buffer)
        memory = self._spare.pop() if self._spare else self._memory()
        for name, rows in memory.items():
            spans = zip(np.sort(blocks).tolist(), rows.reshape(len(blocks), self.block, -1), strict=True)
            self.shards.read(name, takewhile(lambda _: not is_left.is_set(), spans))
        block, row = np.divmod(self.order.served(epoch, buffer), self.block)
        places = blocks.argsort().argsort()[block] * self.block + row
        return memory, np.sort(places, axis=1)[:, rank::world]  # front to back

    def _memory(self) -> Memory:
        return {name: self.shards.memory(name, self.order.rows) for name in self.names}


class CachedEvalLoader:
    """Every row once, in batches of whole images that are dealt to the ranks in turn. Or some of these batches."""

    def __init__(self, shards: Shards, sites: list[str], batch: int, at_most: int | None = None) -> None:
        self.shards = shards
        self.names = [INDEX, *sites]
        images = max(1, batch // shards.per_image)
        order = EvalOrder(len(shards), images * shards.per_image)
        self.order = order if at_most is None else order.thinned(at_most)

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        rank, world = rank_and_world()
        return len(range(rank, len(self.order), world))

    def __iter__(self) -> Iterator[ActivationBatch]:
        """Yield this rank's batches."""
        rank, world = rank_and_world()
        for step in range(rank, len(self.order), world):
            rows = self.order.rows_at(step)
            yield _batch({name: self.shards.rows(name, rows) for name in self.names})


def _serve(memory: Memory, places: Rows, k: int) -> ActivationBatch:
    """Return a copy of the rows at `places[k]`."""
    batch = {name: np.empty((places.shape[1], rows.shape[1]), rows.dtype) for name, rows in memory.items()}
    for name, rows in memory.items():
        np.take(rows, places[k], axis=0, out=batch[name], mode="clip")  # "raise" would go through another copy
    return _batch({name: torch.from_numpy(rows) for name, rows in batch.items()})


def _batch(arrays: dict[str, Tensor]) -> ActivationBatch:
    image, token, label = arrays[INDEX].long().unbind(1)
    return ActivationBatch({name: rows for name, rows in arrays.items() if name != INDEX}, image, token, label)


def _check_same(ours: Origin, theirs: Origin, root: Path) -> None:
    for name in ("model", "model_args", "weights", "sites", "tokens", "sequence", "precision"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine != other:
            raise UserError(f"{root} does not go with data.train: its {name} is {other}, that of train {mine}")


def _check_model(backbone: Backbone, origin: Origin, root: Path) -> None:
    weights = fingerprint(backbone.build())
    if (backbone.name, backbone.model_args, weights) != (origin.model, origin.model_args, origin.weights):
        raise UserError(
            f"{root} holds activations of {origin.model} with weights {origin.weights}, data.backbone is "
            f"{backbone.name} with weights {weights}; extract them again, or name that model"
        )
