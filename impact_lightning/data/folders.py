"""Images in class folders: `root/split/class/file`."""

import os
from pathlib import Path

import numpy as np
from timm.data.readers.reader_factory import create_reader

from impact_lightning.data.source import EXTENSIONS, Encoded, fingerprint
from impact_lightning.data.subset import Rows
from impact_lightning.types import UserError


class Folders:
    """A directory with one directory for each split.

    Args:
        root: The directory.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"data.root {root} is not a directory; give the one that holds the splits or the classes")

    def has(self, split: str) -> bool:
        """Return whether there is such a directory; `.` is the root itself."""
        return (self.root / split).is_dir()

    def open(self, split: str) -> "FolderSource":
        """List the images of a split."""
        return FolderSource(self.root / split)


class FolderSource:
    """The images below a directory; the folder that holds an image is its class.

    Args:
        root: The directory of the classes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            folders = {entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")}
            reader = create_reader("", root=str(root), input_key=";".join(EXTENSIONS))
        except OSError as error:
            raise UserError(f"{root}: cannot be listed ({error.strerror})") from error
        except RuntimeError as error:  # timm found no image
            raise UserError(f"{root}: no images below it; they end in {' '.join(EXTENSIONS)}") from error
        relative = [os.path.relpath(path, root) for path, _ in reader.samples]
        loose = [name for name in relative if os.sep not in name]
        if loose:
            raise UserError(f"{root}: {loose[0]} is in no class folder; the folder of an image is its class")
        empty = folders - {name.split(os.sep, 1)[0] for name in relative}
        if empty:
            raise UserError(f"{root}: no images in the class folder {min(empty)}; fill or remove it")
        # arrays rather than lists of objects: worker processes would copy every object whose references they count
        self.names = np.array([os.fsencode(name) for name in relative])
        self.labels: Rows = np.array([label for _, label in reader.samples], dtype=np.int64)
        self.class_names: list[str] = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __getitem__(self, row: int) -> Encoded:
        """Read one file."""
        with open(self.name(row), "rb") as file:
            return Encoded(file.read(), int(self.labels[row]))

    def name(self, row: int) -> str:
        """Return the path of a file."""
        return f"{self.root}{os.sep}{os.fsdecode(self.names[row])}"

    def fingerprint(self, rows: Rows) -> str:
        """Return a hash over names, sizes and labels."""
        sizes = np.array([_size(self.name(row)) for row in rows], dtype=np.int64)
        return fingerprint(self.names[rows], sizes, self.labels[rows], self.class_names)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # reading it will fail too, and on_error says what happens then
        return -1
