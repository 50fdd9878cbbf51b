"""Writing files so that a kill at any moment leaves the old one or the new one, never a half."""

import csv
import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from impact_lightning.types import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; it takes its name when the block ends well, and vanishes when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and error.filename is None:  # of a write: a full disk does not say which file it was
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a table of comma-separated values, whole or not at all."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors="backslashreplace"))  # file names need not be UTF-8


def link_or_copy(source: Path, target: Path) -> None:
    """Let `target` name the same bytes as `source`, atomically; a hard link costs nothing and cannot dangle."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
        with suppress(FileNotFoundError):  # rename of two names of the same file does nothing
            temporary.unlink()
    except OSError:  # a file system without hard links
        with source.open("rb") as old, atomic_write(target) as new:
            while chunk := old.read(1 << 24):
                new.write(chunk)


def refuse_flipped_bits(path: Path) -> None:
    """Compare a zip file, such as torch writes, with the checksums in it: torch itself does not."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise OSError(f"{damaged} does not have its checksum")


def read_torch(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Return the mapping that a file of torch holds, or say what is wrong with it; no code in it is run."""
    try:
        refuse_flipped_bits(path)
        content = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except Exception as error:  # torch raises many kinds for damaged files
        raise UserError(f"{path} is damaged, or holds more than tensors ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping of names to tensors")
    return content
