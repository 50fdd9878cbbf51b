"""The published files of dSprites and Shapes3D, checked against their factor grids."""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from impact_lightning.data.factors import FactorGrid
from impact_lightning.data.rooms import SHAPES3D_GRID
from impact_lightning.data.scene_source import SceneSource
from impact_lightning.data.sprites import DSPRITES_GRID
from impact_lightning.types import UserError

SIZE = 64
CHUNK = 4096  # images of dSprites to unpack at a time


class DSpritesFile(SceneSource):
    """The images of `dsprites_*.npz`, held as bits: 0.4 GB where the array in the file would take 3 GB.

    Args:
        path: The file.
    """

    grid = DSPRITES_GRID
    channels = 1
    size = SIZE

    def __init__(self, path: str | Path) -> None:
        factors = np.pad(all_factors(self.grid), [(0, 0), (1, 0)])  # the file begins with a colour that is always 0
        try:
            with zipfile.ZipFile(path) as file:
                with open_array(file, Due(path, "latents_classes", factors.shape, np.dtype(np.int64))) as array:
                    classes = np.frombuffer(array.read(), np.int64).reshape(factors.shape)
                if not np.array_equal(classes, factors):
                    raise UserError(f"{path}: 'latents_classes' must be {in_words(self.grid)}")
                with open_array(file, Due(path, "imgs", (len(self.grid), SIZE, SIZE), np.dtype(np.uint8))) as array:
                    self._bits = np.concatenate([np.packbits(images, axis=1) for images in read_binary(array, path)])
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file") from error
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"{path}: must be an npz file, and is none or damaged ({error})") from error

    def render(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return images `(B, 1, 64, 64)` of 0 and 255, and masks `(B, 64, 64)` of the sprites."""
        self.grid.refuse_outside(index)
        ones = np.unpackbits(self._bits[index], axis=1).reshape(-1, SIZE, SIZE)  # (B, 512) -> (B, 64, 64)
        return np.negative(ones)[:, None], ones.view(np.bool_)  # -1 is 255


class Shapes3DFile(SceneSource):
    """The images of `3dshapes.h5`, read when they are asked for.

    Args:
        path: The file.
    """

    grid = SHAPES3D_GRID
    channels = 3
    size = SIZE

    def __init__(self, path: str | Path) -> None:
        self._path = path
        images = Due(path, "images", (len(self.grid), SIZE, SIZE, 3), np.dtype(np.uint8))
        labels = Due(path, "labels", (len(self.grid), len(self.grid.names)), np.dtype(np.float64))
        with open_h5(path) as file:
            for due in (images, labels):
                due.refuse_missing(list(file))
                due.refuse_other(file[due.key].shape, file[due.key].dtype)
            columns = file["labels"][:].T
        levels = np.stack([np.unique(column, return_inverse=True)[1] for column in columns], axis=1)
        if not np.array_equal(levels, all_factors(self.grid)):
            raise UserError(f"{path}: 'labels' must be {in_words(self.grid)}")

    def render(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], None]:
        """Return images `(B, 3, 64, 64)`; the file does not tell which pixels are the object's."""
        self.grid.refuse_outside(index)
        images = np.empty((len(index), SIZE, SIZE, 3), np.uint8)
        with open_h5(self._path) as file:  # for each batch anew, as an open file does not survive a fork
            for image, position in zip(images, index.tolist(), strict=True):
                file["images"].read_direct(image, position)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), None


class Due(NamedTuple):
    """An array that a file must hold."""

    path: str | Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def refuse_missing(self, keys: list[str]) -> None:
        """Refuse a file that holds other keys only."""
        if self.key not in keys:
            raise UserError(f"{self.path}: must hold '{self.key}', and holds {', '.join(keys) or 'nothing'}")

    def refuse_other(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Refuse an array of another shape or type."""
        if (shape, dtype) != (self.shape, self.dtype):
            raise UserError(
                f"{self.path}: '{self.key}' must be {self.dtype} of shape {self.shape}, and is {dtype} of shape {shape}"
            )


@contextmanager
def open_array(file: zipfile.ZipFile, due: Due) -> Iterator[IO[bytes]]:
    """Open an array of an npz file behind its checked header: nothing is unpickled, and no wrong array is read."""
    due.refuse_missing([name.removesuffix(".npy") for name in file.namelist()])
    with file.open(f"{due.key}.npy") as array:
        try:
            read_header = npy.read_array_header_1_0 if npy.read_magic(array) == (1, 0) else npy.read_array_header_2_0
            shape, is_by_column, dtype = read_header(array)
        except ValueError as error:
            raise UserError(f"{due.path}: '{due.key}' must be a numpy array, and is none ({error})") from error
        due.refuse_other(shape, dtype)
        n_bytes = file.getinfo(array.name).file_size - array.tell()
        if is_by_column or n_bytes != math.prod(shape) * dtype.itemsize:
            raise UserError(f"{due.path}: '{due.key}' must be all of its {shape}, row by row, and is {n_bytes} bytes")
        yield array


def read_binary(array: IO[bytes], path: str | Path) -> Iterator[NDArray[np.uint8]]:
    """Yield images of zeros and ones `(CHUNK, 4096)` to the end of the array."""
    while data := array.read(CHUNK * SIZE**2):
        images = np.frombuffer(data, np.uint8).reshape(-1, SIZE**2)
        if images.max() > 1:
            raise UserError(f"{path}: 'imgs' must be 0 or 1, and has a pixel of {images.max()}")
        yield images


@contextmanager
def open_h5(path: str | Path) -> Iterator[Any]:
    """Open an HDF5 file for reading."""
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: reading it needs h5py; pip install impact_lightning[files]") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: must be an HDF5 file, and is none or damaged ({error})") from error


def all_factors(grid: FactorGrid) -> NDArray[np.int64]:
    """Return the levels of all combinations in their order."""
    return grid.factors_of(np.arange(len(grid)))


def in_words(grid: FactorGrid) -> str:
    """Return the factors of a grid, for a message."""
    factors = ", ".join(f"{name} ({size})" for name, size in zip(grid.names, grid.sizes, strict=True))
    return f"all combinations of {factors}, the last fastest"
