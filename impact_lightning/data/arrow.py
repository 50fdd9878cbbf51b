"""Hugging Face data sets with random access: saved on disk, or prepared from files or the Hub into Arrow tables."""

from pathlib import Path
from typing import Any

import numpy as np

from impact_lightning.data.source import Encoded, fingerprint
from impact_lightning.data.subset import Rows
from impact_lightning.types import UserError


class ArrowTables:
    """A data set of the `datasets` library.

    Args:
        root: A directory that `save_to_disk` wrote, a directory of data files, or a name on the Hub.
    """

    def __init__(self, root: str) -> None:
        datasets = import_datasets()
        self.root = root
        saved = Path(root)
        try:
            if (saved / "dataset_dict.json").is_file():
                self.splits = dict(datasets.load_from_disk(root))
            elif (saved / "state.json").is_file():
                self.splits = {".": datasets.load_from_disk(root)}
            else:
                self.splits = dict(datasets.load_dataset(root))
        except (OSError, ValueError) as error:
            raise UserError(f"data.root {root} is no data set that `datasets` can load: {error}") from error

    def has(self, split: str) -> bool:
        """Return whether there is a split of that name."""
        return split in self.splits

    def open(self, split: str) -> "ArrowSource":
        """Return the table of a split."""
        return ArrowSource(self.splits[split], f"{self.root}[{split}]")


class ArrowSource:
    """The rows of one table.

    Args:
        dataset: A `datasets.Dataset` with one column of images and one of class labels.
        title: What errors call it.
    """

    def __init__(self, dataset: Any, title: str) -> None:
        image, label = columns(dataset.features, title)
        self.title = title
        self.class_names: list[str] = list(dataset.features[label].names)
        if not len(dataset):
            raise UserError(f"{title}: no images")
        table = dataset.flatten_indices() if dataset._indices is not None else dataset
        self.labels: Rows = table.data.column(label).to_numpy().astype(np.int64)
        self.images = table.data.column(image)  # of structs {bytes, path}
        if self.labels.min() < 0:
            raise UserError(f"{title}: row {self.labels.argmin()} has no label; remove the rows without one")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.labels)

    def __getitem__(self, row: int) -> Encoded:
        """Read the bytes of one image."""
        return Encoded(stored_bytes(self.images[row].as_py()), int(self.labels[row]))

    def name(self, row: int) -> str:
        """Return the title, the row, and the path if one is stored."""
        return f"{self.title} row {row} {(self.images[row].as_py() or {}).get('path') or ''}".rstrip()

    def fingerprint(self, rows: Rows) -> str:
        """Return a hash over row numbers, sizes and labels."""
        import pyarrow.compute as pc

        sizes = pc.fill_null(pc.binary_length(pc.struct_field(self.images, "bytes")), -1).to_numpy()
        return fingerprint(rows.astype(np.bytes_), sizes[rows], self.labels[rows], self.class_names)


def import_datasets() -> Any:
    """Return the `datasets` library, which is not part of a plain installation."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("data.source hfds and hfids need `pip install impact_lightning[files]`") from error
    return datasets


def columns(features: Any, title: str) -> tuple[str, str]:
    """Return the only column of images and the only one of class labels."""
    datasets = import_datasets()
    found = []
    for kind in (datasets.Image, datasets.ClassLabel):
        names = [name for name, feature in (features or {}).items() if isinstance(feature, kind)]
        if len(names) != 1:
            raise UserError(
                f"{title}: one {kind.__name__} column is needed, found {names} in {list(features or {})}; "
                "cast, rename or remove columns with `datasets` and save the result"
            )
        found.append(names[0])
    return found[0], found[1]


def stored_bytes(image: dict[str, Any] | None) -> bytes:
    """Return the encoded bytes of an image that a table holds, or whose path it holds."""
    if not image or not (image["bytes"] or image["path"]):
        raise OSError("the row holds no image")
    if image["bytes"]:
        return bytes(image["bytes"])
    import fsspec  # of datasets: the path may lie on the Hub

    with fsspec.open(image["path"], "rb") as file:
        return bytes(file.read())
