"""Miniature pictures in every form of storage that is read."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def jpeg(number: int, h: int = 12, w: int = 10) -> bytes:
    file = io.BytesIO()
    coarse = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((w, h)).save(file, "JPEG")
    return file.getvalue()


def write_folders(root: Path, counts: dict[str, int]) -> Path:
    """Write `root/class/n.jpg`, as many of each class as are asked for."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(jpeg(100 * label + number))
    return root


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(root: Path, lengths: list[int], split: str = "train") -> Path:
    """Write WebDataset shards whose samples alternate between two classes."""
    number = 0
    for shard, length in enumerate(lengths):
        files: dict[str, bytes] = {}
        for _ in range(length):
            files |= {f"{number:04}.jpg": jpeg(number), f"{number:04}.cls": str(number % 2).encode()}
            number += 1
        write_tar(root / f"{split}-{shard:02}.tar", files)
    return root


def table(numbers: list[int], label: Callable[[int], int] = lambda number: number % 2) -> Any:
    """Return a `datasets.Dataset` of two classes, which alternate if not told otherwise."""
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = [{"bytes": jpeg(number), "path": None} for number in numbers]
    return datasets.Dataset.from_dict({"img": images, "label": [int(label(n)) for n in numbers]}, features=features)
