"""Benchmarks of activations: extraction beside the forward it cannot avoid, shuffled reading beside a plain copy."""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from impact_lightning.activations import Tokens, extract
from impact_lightning.activations.cached import CachedLoader
from impact_lightning.activations.frozen import FrozenBackbone
from impact_lightning.activations.manifest import Configuration, Manifest, Origin, Precision
from impact_lightning.activations.shards import Shards, read_record, write_shard
from impact_lightning.activations.stored_array import CHUNK, Array
from impact_lightning.backbones import Backbone
from impact_lightning.data.loader import Fetched
from impact_lightning.data.module import ImageDataModule, Split
from impact_lightning.types import ImageBatch, Key

MIDDLE = 6  # block whose output is read: the forward ends after it
ROUNDS = 7
WIDTH = 768


def extract_speed(model: str = "vit_small_patch16_224", batch: int = 0, batches: int = 0) -> list[dict[str, Any]]:
    """Extract a residual site of the middle block; the floor runs the blocks up to it on images that lie ready.

    On a CPU 16 images a batch and 8 batches a round are the default, on a GPU 256 and 32 under bf16 autocast.
    """
    is_cuda = torch.cuda.is_available()
    batch, batches = batch or (256 if is_cuda else 16), batches or (32 if is_cuda else 8)
    data, backbone = _Noise(batch * batches), Backbone(model)
    precision: Precision = "bf16-mixed" if is_cuda else "32-true"
    torch.manual_seed(0)
    frozen = FrozenBackbone(backbone, [f"blocks.{MIDDLE}.resid_post"], Tokens(), precision)
    vit, device = frozen.model, torch.device("cuda" if is_cuda else "cpu")
    vit.to(device)
    images = data.on_after_batch_transfer(data.split("train").__getitems__(_keys(batch)).batch, 0).images.to(device)

    def floor() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=is_cuda):
            for _ in range(batches):
                x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
                for block in vit.blocks[: MIDDLE + 1]:
                    x = block(x)
        if is_cuda:
            torch.cuda.synchronize()

    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(10**6))

        def figure() -> None:
            torch.manual_seed(0)
            extract(
                backbone=backbone,
                data=data,
                sites=list(frozen.sites),
                out=Path(folder) / str(next(numbers)),
                precision=precision,
                batch_size=batch,
                images_per_shard=2 * batch,
            )

        def prepare() -> None:
            torch.manual_seed(0)
            FrozenBackbone(backbone, list(frozen.sites), Tokens(), "32-true").origin(data, "train")

        with contextlib.redirect_stdout(io.StringIO()):
            extracting, start, bare = _interleaved(figure, prepare, floor)
    n = batch * batches
    return [
        {
            "name": "extract, beside a truncated forward",
            "figure_per_s": n / (extracting - start),
            "floor_per_s": n / bare,
            "ratio": bare / (extracting - start),
            "target": 0.95,
            "setup": {
                "figure": "images/s of `extract`, without building the model once",
                "floor": "images/s of the blocks alone, on one batch that lies ready",
                "model": model,
                "batch": batch,
                "images": n,
                "precision": precision,
                "threads": torch.get_num_threads(),
                "build_s": start,
            },
        }
    ]


def shards(megabytes: int = 400) -> list[dict[str, Any]]:
    """Read shards in shuffled batches; the floor copies the same bytes from front to back out of memory maps."""
    rows = megabytes * 10**6 // (2 * WIDTH) // CHUNK * CHUNK
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root, rows)
        loader = CachedLoader(Shards(root), ["site"], batch=4096, block=256, buffer_blocks=256, seed=0)
        first = _seconds(lambda: _read(loader))  # compares every checksum, once in a process
        n_bytes = _read(loader)
        memory = np.zeros((loader.order.rows, WIDTH), np.float16)
        paths = sorted((root / "site").iterdir())

        def floor() -> None:
            for path in paths:
                part = np.load(path, mmap_mode="r")
                for start in range(0, len(part), len(memory)):
                    piece = part[start : start + len(memory)]
                    np.copyto(memory[: len(piece)], piece)

        shuffled, plain = _interleaved(lambda: _read(loader), floor)
        figure, bare = n_bytes / shuffled / 1e9, rows * 2 * WIDTH / plain / 1e9
    return [
        {
            "name": "shuffled reading, beside a plain copy",
            "figure_gb_per_s": figure,
            "floor_gb_per_s": bare,
            "ratio": figure / bare,
            "target": 0.5,
            "setup": {
                "figure": "GB/s of batches of 4096 rows from a buffer of 65536 rows, warm cache, checksums known",
                "floor": "GB/s of np.copyto from memory maps in order, into memory of the size of the buffer",
                "megabytes": megabytes,
                "width": WIDTH,
                "dtype": "float16",
                "first_epoch_gb_per_s": n_bytes / first / 1e9,
                "cpus": os.cpu_count(),
            },
        }
    ]


class _Noise(ImageDataModule):
    """Random pictures that lie ready: decoding is not what is measured."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.mean, self.std = (0.5,) * 3, (0.25,) * 3
        self.class_names = ["noise"]
        self.set = _NoiseSet(n)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, 224, 224

    def split(self, name: Split) -> "_NoiseSet":
        return self.set


class _NoiseSet:
    fingerprint = "noise"

    def __init__(self, n: int) -> None:
        self.n = n
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (512, 3, 224, 224), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, keys: list[Key]) -> Fetched:
        row = torch.tensor([key.row for key in keys])
        start = keys[0].row % (len(self.images) - len(keys) + 1)
        return Fetched(ImageBatch(self.images[start : start + len(keys)], row % 1, row))


def _keys(n: int) -> list[Key]:
    return [Key(0, row) for row in range(n)]


def _write(root: Path, rows: int) -> None:
    per_shard = 64 * CHUNK
    sizes = [min(per_shard, rows - start) for start in range(0, rows, per_shard)]
    origin = Origin("noise", {}, "", "", {}, {"site": WIDTH}, Tokens("cls"), 1, "32-true")
    configuration = Configuration(origin, "float16", len(sizes), images_per_shard=1, batch_size=1)
    generator = np.random.default_rng(0)
    for number, n in enumerate(sizes):
        arrays: dict[str, Array] = {
            "index": np.zeros((n, 3), np.int32),
            "site": generator.standard_normal((n, WIDTH), np.float32).astype(np.float16),
        }
        write_shard(root, number, arrays, configuration.digest())
    found = [read_record(root, number, configuration.digest()) for number in range(len(sizes))]
    Manifest(configuration, found, {}).write(root)


def _read(loader: CachedLoader) -> int:
    return sum(batch.activations["site"].nbytes for batch in loader)


def _interleaved(*runs: Callable[[], object]) -> Iterator[float]:
    """Return the median seconds of things that are measured in turn, so that all meet the same disturbances."""
    for run in runs:
        run()
    times = [[_seconds(run) for run in runs] for _ in range(ROUNDS)]
    return (median(column) for column in zip(*times, strict=True))


def _seconds(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start
