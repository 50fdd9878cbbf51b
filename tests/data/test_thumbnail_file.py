"""Thumbnails come back as they were written, and a file that is missing or damaged is named."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from impact_lightning.data import thumbnail_file
from impact_lightning.data.images import ImageData
from impact_lightning.data.module import ImageDataModule
from impact_lightning.data.pictures import RGB
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.data.thumbnail_file import foremost, read_thumbnails, thumbnail_size, write_thumbnails
from impact_lightning.data.transforms import Preprocess
from impact_lightning.types import Key, UserError
from tests.data.pictures import write_folders


@pytest.fixture(scope="module")
def rooms() -> ImageDataModule:
    data = SceneData(Rooms(size=16), label=["shape"], n_train=4, n_val=4, n_test=12)
    data.setup("test")
    return data


def folders(root: Path, size: int = 80) -> ImageData:
    if not root.exists():
        write_folders(root / "train", {"cat": 2, "dög": 2})
        write_folders(root / "test", {"cat": 3, "dög": 3})
    data = ImageData(str(root), preprocess=Preprocess(size=size))
    data.setup("test")
    return data


def test_small_images_come_back_as_they_are(rooms: ImageDataModule, tmp_path: Path) -> None:
    path = tmp_path / "new" / "thumbnails.safetensors"
    write_thumbnails(path, rooms, [7, 2, 7, -1, 0])
    found = read_thumbnails(path)
    batch = rooms.split("test").__getitems__([Key(0, row) for row in (0, 2, 7)]).batch
    assert found.rows.tolist() == [0, 2, 7]
    assert found.rows.dtype == torch.int64
    assert torch.equal(found.images, batch.images.permute(0, 2, 3, 1))
    assert found.labels == batch.labels.tolist()
    assert found.names == [rooms.sample_name("test", row) for row in (0, 2, 7)]
    assert found.data == rooms.fingerprint("test")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    assert (about["schema"], about["split"]) == ("1", "test")


def test_large_images_are_scaled_and_named(tmp_path: Path) -> None:
    data, path = folders(tmp_path / "data"), tmp_path / "t.safetensors"
    write_thumbnails(path, data, range(6))
    found = read_thumbnails(path)
    assert found.images.shape == (6, 64, 64, 3)
    assert float(found.images.float().std()) > 10  # not blank
    assert found.labels == [0, 0, 0, 1, 1, 1]
    assert all(name.endswith(".jpg") for name in found.names)
    assert "dög" in found.names[-1]
    write_thumbnails(path, data, range(6), most=20)
    assert read_thumbnails(path).images.shape == (6, 20, 20, 3)


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    data, path = folders(tmp_path / "data"), tmp_path / "t.safetensors"
    (tmp_path / "data" / "test" / "cat" / "1.jpg").write_bytes(b"no picture")
    write_thumbnails(path, data, range(6))
    found = read_thumbnails(path)
    assert found.rows.tolist() == [0, 2, 3, 4, 5]
    assert len(found.names) == len(found.labels) == 5


def test_labels_that_are_not_known_are_minus_one(
    rooms: ImageDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = rooms.split("test")
    unlabelled = SimpleNamespace(fingerprint=split.fingerprint, __getitems__=split.__getitems__)
    monkeypatch.setattr(rooms, "split", lambda _: unlabelled)
    write_thumbnails(tmp_path / "t", rooms, [1, 3])
    assert read_thumbnails(tmp_path / "t").labels == [-1, -1]


def test_pictures_at_hand_are_not_read_again(
    rooms: ImageDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[int, RGB] = {}
    write_thumbnails(tmp_path / "a", rooms, [1, 3], known=known)
    asked: list[int] = []

    def none_at_all(_: ImageDataModule, rows: set[int], size: tuple[int, int]) -> dict[int, RGB]:
        asked.extend(rows)
        assert size == (16, 16)
        return {}

    monkeypatch.setattr(thumbnail_file, "thumbnails", none_at_all)
    write_thumbnails(tmp_path / "b", rooms, [3, 4], known=known)
    assert asked == [4]
    assert set(known) == {1, 3}
    assert torch.equal(read_thumbnails(tmp_path / "b").images[0], read_thumbnails(tmp_path / "a").images[1])


def test_the_best_images_come_first() -> None:
    tops = [torch.tensor([[5, 1, 7], [2, -1, -1]]), torch.tensor([[5, 3]])]
    assert foremost(tops) == [5, 2, 1, 3, 7]
    assert foremost(tops, most=3) == [5, 2, 1]
    assert foremost([]) == foremost([torch.zeros(0, 4)]) == []


def test_no_rows_are_a_file_without_pictures(rooms: ImageDataModule, tmp_path: Path) -> None:
    write_thumbnails(tmp_path / "t", rooms, [])
    found = read_thumbnails(tmp_path / "t")
    assert found.images.shape == (0, 16, 16, 3)
    assert found.rows.shape == (0,)
    assert found.names == []


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 64, 64), (64, 64)), ((1, 20, 30), (20, 30)), ((3, 384, 96), (64, 16)), ((3, 1, 999), (1, 64))],
)
def test_sizes_keep_proportions(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    assert thumbnail_size(shape) == size


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.safetensors does not exist"):
        read_thumbnails(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("damage", ["cut", "text", "schema", "labels", "rows", "shape", "no tensor", "no json"])
def test_a_damaged_file_is_named(damage: str, rooms: ImageDataModule, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_thumbnails(path, rooms, range(3))
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    if damage in ("cut", "text"):
        path.write_bytes(path.read_bytes()[:-100] if damage == "cut" else b"<html>")
    else:
        about |= {"schema": {"schema": "0"}, "labels": {"labels": [1]}, "no json": {"names": None}}.get(damage, {})
        if damage == "rows":
            tensors["rows"] = tensors["rows"][:2]
        elif damage == "shape":
            tensors["images"] = tensors["images"][..., 0].contiguous()
        elif damage == "no tensor":
            del tensors["images"]
        save_file(tensors, path, {"about": json.dumps(about)})
    with pytest.raises(UserError, match=r"t\.safetensors"):
        read_thumbnails(path)
