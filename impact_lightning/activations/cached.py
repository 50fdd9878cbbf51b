"""Activations from shards on disk."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from impact_lightning.activations.batch import ActivationBatch, SiteStatistics
from impact_lightning.activations.loader import BufferedLoader, Serve
from impact_lightning.activations.manifest import INDEX, Origin
from impact_lightning.activations.module import ActivationDataModule
from impact_lightning.activations.order import BufferOrder
from impact_lightning.activations.shards import Shards
from impact_lightning.backbones import Backbone, fingerprint
from impact_lightning.data.module import Split
from impact_lightning.data.order import EvalOrder, Rows
from impact_lightning.ranks import rank_and_world
from impact_lightning.types import UserError

AHEAD = 1  # batches that are copied while another is used


class CachedActivations(ActivationDataModule):
    """Activations that `extract` has written, shuffled by blocks over the whole set and by rows inside a buffer.

    Args:
        train: Folder of the training split.
        val: Folder of the validation split.
        test: Folder of the test split; None takes that for validation.
        sites: Sites to read, by name; None reads all that are stored.
        backbone: The model that the activations must be of; None takes any.
        batch_size: Rows of one training step over all ranks together.
        eval_batch_size: Rows of one evaluation batch on one rank.
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

    def protocol(self) -> dict[str, Any]:
        """Return the constants under which numbers on these activations are made."""
        return {**self.origin.protocol(), "dtype": self._split("train").manifest.configuration.dtype}

    def _estimate(self) -> dict[str, SiteStatistics]:
        return self._split("train").manifest.statistics

    def _train_loader(self) -> BufferedLoader:
        return CachedLoader(
            self._split("train"),
            self.sites,
            batch=self.batch_size,
            block=self.block_rows,
            buffer_blocks=self.buffer_blocks,
            seed=self.seed,
        )

    def _eval_loader(self, name: Split) -> "CachedEvalLoader":
        return CachedEvalLoader(self._split(name), self.sites, self.eval_batch_size)

    def _split(self, name: Split) -> Shards:
        if name not in self.shards:
            raise UserError(f"data.{name} is not set: extract the {name} split and give its folder")
        return self.shards[name]


class CachedLoader(BufferedLoader):
    """Endless training batches from shards.

    Each epoch cuts the rows into blocks from a random offset, and deals the shuffled blocks to buffers. The buffer is
    the page cache: the system is asked to read the blocks of the next one while the rows of this one are served, and
    the process itself holds a few batches. Rows go through memory once, since copies are what reading costs.

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

    def plan(self) -> str:
        """Return what decides the order of the rows."""
        return f"{self.order} in blocks of {self.block}"

    def blocks(self, epoch: int, buffer: int) -> Rows:
        """Return the first rows of the blocks of a buffer `(buffer_blocks,)`."""
        generator = np.random.default_rng([self.order.seed, epoch])
        offset = generator.integers(len(self.shards) - self.n_blocks * self.block + 1)  # or a tail was never read
        order = generator.permutation(self.n_blocks)[buffer * self.buffer_blocks : (buffer + 1) * self.buffer_blocks]
        return order * self.block + offset

    def rows(self, epoch: int, buffer: int) -> Rows:
        """Return the rows of each batch of a buffer in ascending order `(steps, batch)`."""
        rows = (self.blocks(epoch, buffer)[:, None] + np.arange(self.block)).ravel()
        return np.sort(rows[self.order.served(epoch, buffer)], axis=1)  # front to back, shard by shard

    def buffers(self, epoch: int, first: int) -> Iterator[Serve]:
        """Serve one buffer after the other."""
        rank, world = rank_and_world()
        with ThreadPoolExecutor(AHEAD + 1) as pool:
            for buffer in range(first, self.order.n_buffers):
                if buffer + 1 < self.order.n_buffers:
                    pool.submit(self._read_ahead, epoch, buffer + 1)
                yield partial(self._serve, self.rows(epoch, buffer)[:, rank::world], pool, {})
                self.shards.forget()

    def _serve(
        self, rows: Rows, pool: ThreadPoolExecutor, ahead: dict[int, Future[ActivationBatch]], k: int
    ) -> ActivationBatch:
        """Return batch k of a buffer; the next ones are copied by threads meanwhile."""
        for step in range(k, min(k + 1 + AHEAD, len(rows))):
            if step not in ahead:
                ahead[step] = pool.submit(self._read, rows[step])
        return ahead.pop(k).result()

    def _read(self, rows: Rows) -> ActivationBatch:
        return _batch({name: self.shards.rows(name, rows) for name in self.names})

    def _read_ahead(self, epoch: int, buffer: int) -> None:
        for name in self.names:
            self.shards.read_ahead(name, self.blocks(epoch, buffer), self.block)


class CachedEvalLoader:
    """Every row once, in whole batches that are dealt to the ranks in turn."""

    def __init__(self, shards: Shards, sites: list[str], batch: int) -> None:
        self.shards = shards
        self.names = [INDEX, *sites]
        self.order = EvalOrder(len(shards), batch)

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
            self.shards.forget()


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
