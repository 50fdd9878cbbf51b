"""Decoded images per second: our loader beside a plain DataLoader over an ImageFolder, which does the same work."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    ToTensor,
)

from impact_lightning.data.images import ImageData, SplitNames
from impact_lightning.data.transforms import FlipCrop, Preprocess

ROUNDS = 15
SECONDS = 0.5  # of one measurement
SMALL = 64  # pictures up to this side are trained on as they are, with a flip and a shift


def images(root: str | None = None) -> list[dict[str, Any]]:
    """Measure with 0 and 2 workers on class folders, or on synthetic JPEGs of both sizes where no root is given."""
    torch.set_num_threads(1)  # a thread pool that waits for a busy core would drown what is measured
    with tempfile.TemporaryDirectory() if root is None else nullcontext(root) as folder:
        roots = [folder]
        if root is None:
            roots = [
                _write(Path(folder) / "small", n=2000, h=32, w=32),
                _write(Path(folder) / "photos", n=100, h=375, w=500),
            ]
        return [row for each in roots for row in _bench(each)]


def _bench(root: str) -> list[dict[str, Any]]:
    folder = ImageFolder(root)
    first = folder.loader(folder.samples[0][0])
    is_small = max(first.size) <= SMALL
    size, batch, n = (first.width, 128, 10_000) if is_small else (224, 16, 1000)
    rows = []
    for workers in (0, 2):
        ours, plain = (
            _ours(root, size, batch, workers, is_small=is_small),
            _plain(root, size, batch, workers, is_small=is_small),
        )
        figure, floor = _interleaved(ours, plain)
        rows.append(
            {
                "name": f"images {'flip and crop' if is_small else 'eval'} {size} px, {workers} workers",
                "figure_per_s": figure,
                "floor_per_s": floor,
                "ratio": figure / floor,
                "setup": {
                    "floor": "DataLoader + ImageFolder, same geometry, ToTensor, Normalize",
                    "batch": batch,
                    "workers": workers,
                    "images": len(folder),
                    "decode_per_s_one_core": _decode_rate([path for path, _ in folder.samples[:n]]),
                    "cpus": os.cpu_count(),
                },
            }
        )
    return rows


def _ours(root: str, size: int, batch: int, workers: int, *, is_small: bool) -> Iterator[int]:
    """Yield the images of each batch, as a trainer on the CPU gets them: normalised floats."""
    data = ImageData(
        root,
        splits=SplitNames(train=".", val="."),
        preprocess=Preprocess(size=size, crop_pct=1.0 if is_small else None),
        augment=FlipCrop() if is_small else None,
        batch_size=batch,
        workers=workers,
    )
    loader = data.train_dataloader()
    while True:
        for samples in loader:
            yield len(data.on_after_batch_transfer(samples, 0).images)


def _plain(root: str, size: int, batch: int, workers: int, *, is_small: bool) -> Iterator[int]:
    constants = Preprocess().resolved
    small = [RandomCrop(size, padding=4), RandomHorizontalFlip()]
    usual = [Resize(int(size / constants["crop_pct"]), InterpolationMode.BICUBIC), CenterCrop(size)]
    floats = [ToTensor(), Normalize(constants["mean"], constants["std"])]
    loader = DataLoader(
        ImageFolder(root, Compose([*(small if is_small else usual), *floats])),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )
    while True:
        for pictures, _ in loader:
            yield len(pictures)


def _interleaved(*streams: Iterator[int]) -> list[float]:
    """Return the median rates of streams that are measured in turn, so that both meet the same disturbances."""
    rates: list[list[float]] = [[] for _ in streams]
    for _ in range(ROUNDS + 1):
        for stream, found in zip(streams, rates, strict=True):
            found.append(_rate(stream))
    return [median(found[1:]) for found in rates]  # the first warms up


def _rate(stream: Iterator[int]) -> float:
    for _ in range(12):  # what workers have prepared while the other stream was measured
        next(stream)
    start, seen = perf_counter(), 0
    while perf_counter() - start < SECONDS:
        seen += next(stream)
    return seen / (perf_counter() - start)


def _decode_rate(paths: list[str]) -> float:
    start = perf_counter()
    for path in paths:
        Image.open(path).convert("RGB")
    return len(paths) / (perf_counter() - start)


def _write(root: Path, *, n: int, h: int, w: int) -> str:
    generator = np.random.default_rng(0)
    for row, name in zip(range(n), cycle("ab")):
        (root / name).mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (h // 8, w // 8, 3), dtype=np.uint8)  # smooth, as photographs are
        Image.fromarray(coarse).resize((w, h)).save(root / name / f"{row:04}.jpg", quality=90)
    return str(root)
