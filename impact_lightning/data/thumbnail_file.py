"""Thumbnails: small pictures of test images in one file, for reports that read no images."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from impact_lightning.data.labels import labels_of
from impact_lightning.data.module import ImageDataModule
from impact_lightning.data.pictures import RGB, thumbnails
from impact_lightning.files import atomic_write
from impact_lightning.types import UserError

FILE = "thumbnails.safetensors"
SCHEMA = "1"
MOST = 64  # pixels on the longer side
ROWS = 20_000  # pictures of a file that shows the top images of many units


class Thumbnails(NamedTuple):
    """Pictures of N test images, all of one size."""

    rows: Tensor  # (N,) int64, in the test split, ascending
    images: Tensor  # (N, H, W, 3) uint8
    labels: list[int]  # -1 where it is not known
    names: list[str]  # what a person calls each: its file; empty if it has none
    data: str  # fingerprint of the test split


def write_thumbnails(
    path: Path, data: ImageDataModule, rows: Iterable[int], most: int = MOST, known: dict[int, RGB] | None = None
) -> None:
    """Write pictures of test images, each once; those that cannot be read are left out.

    Args:
        path: The file.
        data: The images.
        rows: Which of the test split; negative ones stand for no image.
        most: Pixels of the longer side; smaller images stay as they are, larger ones keep their proportions.
        known: Pictures that an earlier call has made of this data at this size; those that are read are added.
    """
    size, pictures, wanted = thumbnail_size(data.image_shape, most), {} if known is None else known, set(rows)
    pictures |= thumbnails(data, wanted - pictures.keys(), size)
    found = sorted(wanted & pictures.keys())
    images = np.stack([pictures[row] for row in found]) if found else np.zeros((0, *size, 3), np.uint8)
    names = [data.sample_name("test", row) for row in found]
    about = {"data": data.fingerprint("test"), "split": "test", "labels": _labels(data, found), "names": names}
    tensors = {"rows": torch.tensor(found, dtype=torch.int64), "images": torch.from_numpy(images)}
    with atomic_write(path) as file:
        file.write(save(tensors, {"about": json.dumps({"schema": SCHEMA, **about})}))  # several keys come in any order


def thumbnail_size(shape: tuple[int, int, int], most: int = MOST) -> tuple[int, int]:
    """Return height and width of the thumbnails of images `(C, h, w)`.

    Example:
        >>> thumbnail_size((3, 32, 32)), thumbnail_size((3, 224, 112))
        ((32, 32), (64, 32))
    """
    _, h, w = shape
    scale = min(1.0, most / max(h, w))
    return max(1, round(h * scale)), max(1, round(w * scale))


def foremost(tops: Sequence[Tensor], most: int = ROWS) -> list[int]:
    """Return the rows of tables `(k, m)` of top images: the best of all, then the second of all, up to so many rows.

    Example:
        >>> foremost([torch.tensor([[5, 1], [2, -1]]), torch.tensor([[5, 3]])], most=3)
        [5, 2, 1]
    """
    found: dict[int, None] = {}
    for rank in range(max((table.shape[1] for table in tops), default=0)):
        for table in tops:
            if rank < table.shape[1]:
                found |= dict.fromkeys(row for row in table[:, rank].tolist() if row >= 0)
        if len(found) >= most:
            break
    return list(found)[:most]


def _labels(data: ImageDataModule, rows: list[int]) -> list[int]:
    try:
        labels = labels_of(data, "test")
    except UserError:  # a stream: the picture is worth having without its label
        return [-1] * len(rows)
    return [int(labels[row]) for row in rows]


def read_thumbnails(path: Path) -> Thumbnails:
    """Return what `write_thumbnails` wrote; a missing or damaged file is refused by name."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("about", "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: `test` writes it; run it again") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `test` again") from error
    try:
        about: dict[str, Any] = json.loads(written)
        if about.get("schema") != SCHEMA:
            raise UserError(f"{path} was not written by this version; run `test` again")
        labels, names = [int(n) for n in about["labels"]], [str(n) for n in about["names"]]
        found = Thumbnails(tensors["rows"], tensors["images"], labels, names, about["data"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); run `test` again") from error
    n = len(labels)
    is_whole = found.images.dtype == torch.uint8 and found.images.ndim == 4 and found.images.shape[3] == 3
    if not is_whole or found.rows.shape != (n,) or not n == len(found.images) == len(names):
        raise UserError(f"{path} is damaged: its pictures, rows, labels and names do not belong together")
    return found
