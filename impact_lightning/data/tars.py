"""Images inside uncompressed tar files, indexed for random access."""

import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from timm.utils.misc import natural_key

from impact_lightning.data.shard_files import numbered_classes, shard_files
from impact_lightning.data.source import EXTENSIONS, Encoded, fingerprint
from impact_lightning.data.subset import Rows
from impact_lightning.types import UserError


class Member(NamedTuple):
    """Where the bytes of an image lie."""

    tar: Path
    name: str
    label: str | int  # its folder, or the number in the .cls file beside it
    offset: int
    size: int


class Tars:
    """A directory of tar files, or one tar file with a folder for each split.

    Args:
        root: The directory or file.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise UserError(f"data.root {root} does not exist; give a .tar file or a directory of them")
        self.members = scan(self.root) if self.root.is_file() else []

    def has(self, split: str) -> bool:
        """Return whether there are tar files, or a folder in the only tar file, of that name."""
        return bool(self._below(split) if self.root.is_file() else shard_files(self.root, split))

    def open(self, split: str) -> "TarSource":
        """Index the images of a split."""
        if self.root.is_file():
            return TarSource(self.root, self._below(split))
        return TarSource(self.root, [member for tar in shard_files(self.root, split) for member in scan(tar)])

    def _below(self, split: str) -> list[Member]:
        return [member for member in self.members if PurePosixPath(member.name).is_relative_to(split)]


class TarSource:
    """The images of some tar files; a `.cls` file beside an image or else its folder is the class, or else the tar.

    Args:
        root: What file names in a fingerprint are relative to.
        members: The images.
    """

    def __init__(self, root: Path, members: list[Member]) -> None:
        if not members:
            raise UserError(f"{root}: no images in its tar files; they end in {' '.join(EXTENSIONS)}")
        self.root = root
        members = sorted(members, key=lambda member: (natural_key(member.tar.name), natural_key(member.name)))
        self.tars = sorted({member.tar for member in members})
        numbers = [member.label for member in members if isinstance(member.label, int)]
        folders = {member.label for member in members if isinstance(member.label, str)}
        if numbers and folders:
            raise UserError(
                f"{root}: some images have a .cls file and some lie in the folder {min(folders)}; mend that"
            )
        self.class_names = sorted(folders, key=natural_key)
        if numbers:
            self.class_names = numbered_classes({tar.parent for tar in self.tars}, max(numbers) + 1)
        number: dict[str | int, int] = {name: row for row, name in enumerate(self.class_names)}
        tar_number = {tar: row for row, tar in enumerate(self.tars)}
        # arrays rather than lists of objects: worker processes would copy every object whose references they count
        self.names = np.array([os.fsencode(member.name) for member in members])
        self.labels: Rows = np.array(
            [number.get(m.label, m.label) for m in members], dtype=np.int64
        )  # a number stands for itself
        self.places = np.array([(tar_number[m.tar], m.offset, m.size) for m in members], dtype=np.int64)  # (N, 3)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __getitem__(self, row: int) -> Encoded:
        """Read the bytes of one image; the file is opened each time, so that processes share no position in it."""
        tar, offset, size = self.places[row]
        with open(self.tars[tar], "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
        return Encoded(data, int(self.labels[row]))

    def name(self, row: int) -> str:
        """Return the tar file and the name inside it."""
        return f"{self.tars[self.places[row, 0]]}:{os.fsdecode(self.names[row])}"

    def fingerprint(self, rows: Rows) -> str:
        """Return a hash over names, sizes and labels."""
        return fingerprint(self.names[rows], self.places[rows, 2], self.labels[rows], self.class_names)


def scan(tar: Path) -> list[Member]:
    """Return the images of a tar file, read from its headers."""
    images: list[tarfile.TarInfo] = []
    classes: dict[str, int] = {}  # the number in every .cls file by the key of its sample
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                if info.isreg() and info.name.lower().endswith(EXTENSIONS):
                    images.append(info)
                elif info.isreg() and info.name.endswith(".cls"):
                    classes[sample_key(info.name)[0]] = read_label(archive, info)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{tar}: not a whole uncompressed tar file ({error}); pack it again") from error
    if classes:  # the WebDataset convention: key.jpg and key.cls are one sample, key.mask.png is something else
        images = [info for info in images if f".{sample_key(info.name)[1]}" in EXTENSIONS]
    return [
        Member(
            tar=tar,
            name=info.name,
            label=classes.get(sample_key(info.name)[0], PurePosixPath(info.name).parent.name or tar.stem),
            offset=info.offset_data,
            size=info.size,
        )
        for info in images
    ]


def sample_key(name: str) -> tuple[str, str]:
    """Return the key of a sample and the extension in lower case: split at the first dot of the file name.

    Example:
        >>> sample_key("n01/a.b.JPG")
        ('n01/a', 'b.jpg')
    """
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()


def read_label(archive: tarfile.TarFile, info: tarfile.TarInfo) -> int:
    """Return the class number that a `.cls` file holds."""
    file = archive.extractfile(info)
    text = file.read().strip().decode(errors="replace") if file else ""
    if not text.isdecimal():
        raise UserError(f"{archive.name!s}:{info.name}: a class number is expected, found {text!r}")
    return int(text)
