"""The published files are read as they are, and refused where they are not what they should be."""

import pickle
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from impact_lightning.data.factors import FactorGrid
from impact_lightning.data.rooms import SHAPES3D_GRID
from impact_lightning.data.scene_files import DSpritesFile, Shapes3DFile
from impact_lightning.data.sprites import DSPRITES_GRID

Arrays = dict[str, NDArray[Any]]


class MiniatureDSprites(DSpritesFile):
    grid = FactorGrid(DSPRITES_GRID.names, (2, 1, 3, 2, 2))


class MiniatureShapes3D(Shapes3DFile):
    grid = FactorGrid(SHAPES3D_GRID.names, (2, 1, 3, 2, 2, 1))


def dsprites_arrays() -> Arrays:
    classes = np.stack(np.unravel_index(np.arange(24), (1, 2, 1, 3, 2, 2)), axis=1)
    return {
        "metadata": np.array({"title": "an object that only pickle can read"}, dtype=object),
        "imgs": np.random.default_rng(0).integers(0, 2, (24, 64, 64), dtype=np.uint8),
        "latents_classes": classes,
        "latents_values": classes / 2,
    }


def shapes3d_arrays() -> Arrays:
    levels = np.stack(np.unravel_index(np.arange(24), (2, 1, 3, 2, 2, 1)), axis=1)
    return {
        "images": np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8),
        "labels": levels * [0.1, 0.1, 0.1, 0.5, 1, 60] - [0, 0, 0, 0, 0, 30],
    }


def write_npz(path: Path, arrays: Arrays) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # the stub takes the arrays for its own options
    return path


def write_h5(path: Path, arrays: Arrays) -> Path:
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array
    return path


def test_dsprites_are_the_images_of_the_file_in_white_and_their_masks(tmp_path: Path) -> None:
    arrays = dsprites_arrays()
    index = np.array([5, 23, 0, 5])
    images, masks = MiniatureDSprites(write_npz(tmp_path / "dsprites.npz", arrays)).render(index)
    assert np.array_equal(images[:, 0], arrays["imgs"][index] * 255)
    assert np.array_equal(masks, arrays["imgs"][index] > 0)


def test_dsprites_in_several_chunks_equal_those_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_npz(tmp_path / "dsprites.npz", dsprites_arrays())
    whole, _ = MiniatureDSprites(path).render(np.arange(24))
    monkeypatch.setattr("impact_lightning.data.scene_files.CHUNK", 5)
    assert np.array_equal(MiniatureDSprites(path).render(np.arange(24))[0], whole)


def test_shapes3d_are_the_images_of_the_file_without_masks(tmp_path: Path) -> None:
    arrays = shapes3d_arrays()
    index = np.array([5, 23, 0, 5])
    images, masks = MiniatureShapes3D(write_h5(tmp_path / "3dshapes.h5", arrays)).render(index)
    assert np.array_equal(images, arrays["images"][index].transpose(0, 3, 1, 2))
    assert masks is None


def test_a_copy_for_another_process_reads_the_same(tmp_path: Path) -> None:
    index = np.arange(24)
    for source in (
        MiniatureDSprites(write_npz(tmp_path / "dsprites.npz", dsprites_arrays())),
        MiniatureShapes3D(write_h5(tmp_path / "3dshapes.h5", shapes3d_arrays())),
    ):
        assert np.array_equal(pickle.loads(pickle.dumps(source)).render(index)[0], source.render(index)[0])


def test_refuses_a_subset_of_dsprites(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "dsprites.npz", dsprites_arrays())
    with pytest.raises(
        ValueError, match=r"dsprites.npz: 'latents_classes' must be .*\(737280, 6\), and is .*\(24, 6\)"
    ):
        DSpritesFile(path)


def test_refuses_a_subset_of_shapes3d(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "3dshapes.h5", shapes3d_arrays())
    with pytest.raises(ValueError, match=r"3dshapes.h5: 'images' must be .*\(480000, 64, 64, 3\), and is .*\(24, 64"):
        Shapes3DFile(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("imgs", None, "must hold 'imgs', and holds metadata, latents_classes, latents_values"),
        ("latents_classes", None, "must hold 'latents_classes'"),
        ("imgs", np.zeros((24, 64, 64), np.float32), "'imgs' must be uint8 .* and is float32"),
        ("imgs", np.zeros((24, 32, 32), np.uint8), r"'imgs' must be .*\(24, 64, 64\), and is .*\(24, 32, 32\)"),
        ("imgs", np.full((24, 64, 64), None), "'imgs' must be uint8 .* and is object"),
        ("imgs", np.full((24, 64, 64), 255, np.uint8), "'imgs' must be 0 or 1, and has a pixel of 255"),
        ("imgs", np.zeros((64, 64, 24), np.uint8).T, "'imgs' must be all of its .* row by row"),
        ("latents_classes", np.zeros((24, 6), np.int64), r"'latents_classes' must be all combinations of shape \(2\)"),
        ("latents_classes", dsprites_arrays()["latents_classes"][::-1], "'latents_classes' must be all combinations"),
    ],
)
def test_refuses_an_npz_of_other_arrays(tmp_path: Path, key: str, value: Any, message: str) -> None:
    arrays = dsprites_arrays() | {key: value}
    path = write_npz(tmp_path / "dsprites.npz", {k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=rf"dsprites.npz: {message}"):
        MiniatureDSprites(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", None, "must hold 'images', and holds labels"),
        ("labels", None, "must hold 'labels', and holds images"),
        ("images", np.zeros((24, 64, 64, 3)), "'images' must be uint8 .* and is float64"),
        ("labels", np.zeros((24, 5)), r"'labels' must be .*\(24, 6\), and is .*\(24, 5\)"),
        ("labels", np.zeros((24, 6)), r"'labels' must be all combinations of floor_hue \(2\)"),
        ("labels", shapes3d_arrays()["labels"][::-1], "'labels' must be all combinations"),
    ],
)
def test_refuses_an_h5_of_other_arrays(tmp_path: Path, key: str, value: Any, message: str) -> None:
    arrays = shapes3d_arrays() | {key: value}
    path = write_h5(tmp_path / "3dshapes.h5", {k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(ValueError, match=rf"3dshapes.h5: {message}"):
        MiniatureShapes3D(path)


def test_refuses_a_damaged_npz(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "dsprites.npz", dsprites_arrays())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"dsprites.npz: must be an npz file, and is none or damaged"):
        MiniatureDSprites(path)


@pytest.mark.parametrize("source", [DSpritesFile, Shapes3DFile])
def test_refuses_a_file_of_another_kind(tmp_path: Path, source: type[DSpritesFile | Shapes3DFile]) -> None:
    path = tmp_path / "scenes"
    path.write_bytes(b"neither a zip archive nor HDF5" * 100)
    with pytest.raises(ValueError, match=r"scenes: must be an .* file, and is none or damaged"):
        source(path)


@pytest.mark.parametrize("source", [DSpritesFile, Shapes3DFile])
def test_refuses_a_path_without_file(tmp_path: Path, source: type[DSpritesFile | Shapes3DFile]) -> None:
    with pytest.raises(ValueError, match="scenes: no such file"):
        source(tmp_path / "scenes")


def test_says_how_to_install_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"pip install impact_lightning\[files\]"):
        Shapes3DFile(tmp_path / "3dshapes.h5")


@pytest.mark.parametrize("position", [-1, 24])
def test_refuses_an_index_outside_of_the_file(tmp_path: Path, position: int) -> None:
    for source in (
        MiniatureDSprites(write_npz(tmp_path / "dsprites.npz", dsprites_arrays())),
        MiniatureShapes3D(write_h5(tmp_path / "3dshapes.h5", shapes3d_arrays())),
    ):
        with pytest.raises(ValueError, match="the grid goes from 0 to 23"):
            source.render(np.array([position]))
