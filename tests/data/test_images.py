"""ImageData reads the same images from every source with random access, and says what is wrong with the others."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from impact_lightning.data.image_set import decode
from impact_lightning.data.images import ImageData, SplitNames
from impact_lightning.data.loader import TrainLoader
from impact_lightning.data.source import Encoded
from impact_lightning.data.transforms import EvalTransform, FlipCrop, Preprocess, RandomResizedCrop
from impact_lightning.types import ImageBatch, Key, UserError
from tests.data.pictures import jpeg, table, write_folders, write_shards, write_tar
from tests.distributed import run_distributed

SMALL = Preprocess(size=8, crop_pct=1.0)
COUNTS = {"cat": 5, "dog": 4}


def make(root: Path, **settings: Any) -> ImageData:
    return ImageData(**{"root": str(root), "preprocess": SMALL, "batch_size": 2, "eval_batch_size": 3, **settings})


def as_folders(root: Path) -> ImageData:
    write_folders(root / "train", COUNTS)
    return make(root, splits=SplitNames(train="train", val="train"))


def as_one_tar(root: Path) -> ImageData:
    write_folders(root / "train", COUNTS)
    files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.jpg")}
    return make(write_tar(root / "all.tar", files), source="tar", splits=SplitNames(val="train"))


def as_a_tar_per_class(root: Path) -> ImageData:
    write_folders(root / "in", COUNTS)
    for name in COUNTS:
        write_tar(
            root / "train" / f"{name}.tar", {path.name: path.read_bytes() for path in (root / "in" / name).iterdir()}
        )
    return make(root, source="tar", splits=SplitNames(val="train"))


def as_arrow(root: Path) -> ImageData:
    table([*range(5), *range(100, 104)], label=lambda number: number >= 100).save_to_disk(str(root / "saved"))
    return make(root / "saved", source="hfds", splits=SplitNames(train=".", val="."))


def train_loader(data: ImageData) -> TrainLoader:
    """Return a loader at the beginning; the DataModule would continue where its last one stood."""
    images = data.split("train")
    return TrainLoader(images, data.train_order(images), workers=data.workers)


def all_of(data: ImageData) -> list[ImageBatch]:
    return list(data.val_dataloader())


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what `datasets` prepares out of the home folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


SOURCES = [as_folders, as_one_tar, as_a_tar_per_class, as_arrow]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_source_gives_the_same_pictures(
    source: Callable[[Path], ImageData], workers: int, tmp_path: Path
) -> None:
    data = source(tmp_path)
    data.workers = workers
    batches = all_of(data)
    numbers = [*range(5), *range(100, 104)]
    for batch, start in zip(batches, (0, 3, 6), strict=True):
        assert batch.row.tolist() == [start, start + 1, start + 2]
        assert batch.labels.tolist() == [int(number >= 100) for number in numbers[start : start + 3]]
        for image, number in zip(batch.images, numbers[start : start + 3], strict=True):
            expected = EvalTransform(SMALL)(Image.open(io.BytesIO(jpeg(number))), Key(0, 0))
            assert np.array_equal(image.numpy(), expected)
    assert data.class_names == ["cat", "dog"]
    assert data.n_classes == 2


@pytest.mark.parametrize("source", SOURCES)
def test_two_ranks_and_two_workers_share_the_batches_of_one_process(
    source: Callable[[Path], ImageData], tmp_path: Path
) -> None:
    data = source(tmp_path)
    data.augment = FlipCrop(pad=2)

    def two_epochs(rank: int, workers: int) -> list[Any]:
        data.workers = workers
        loader = train_loader(data)
        return [(b.row.tolist(), b.images.tolist(), b.labels.tolist()) for _ in range(2) for b in loader]

    whole = two_epochs(0, 0)
    for workers in (0, 2):
        ranks = run_distributed(two_epochs, workers)
        together = [tuple(a + b for a, b in zip(*pair, strict=True)) for pair in zip(*ranks, strict=True)]
        assert together == whole


@pytest.mark.parametrize("source", SOURCES)
def test_fingerprints_tell_contents_apart(source: Callable[[Path], ImageData], tmp_path: Path) -> None:
    data, again = source(tmp_path / "a"), source(tmp_path / "b")
    assert data.split("train").fingerprint == again.split("train").fingerprint
    again.limit = 3
    again._splits.clear()
    assert data.split("train").fingerprint != again.split("train").fingerprint


def test_a_fingerprint_sees_sizes_names_and_labels(tmp_path: Path) -> None:
    def of(root: Path) -> str:
        return make(root).split("train").fingerprint

    write_folders(tmp_path / "train", COUNTS)
    seen = [of(tmp_path)]
    (tmp_path / "train" / "cat" / "0.jpg").write_bytes(jpeg(7, h=90))
    seen.append(of(tmp_path))
    (tmp_path / "train" / "cat" / "0.jpg").rename(tmp_path / "train" / "cat" / "9.jpg")
    seen.append(of(tmp_path))
    (tmp_path / "train" / "cat" / "9.jpg").rename(tmp_path / "train" / "dog" / "9.jpg")
    seen.append(of(tmp_path))
    assert len(set(seen)) == 4


def test_augmentation_resumes_exactly(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", COUNTS)
    first = make(tmp_path, augment=RandomResizedCrop(auto_augment="rand-m5")).train_dataloader()
    whole = [batch.images for _ in range(2) for batch in first]
    interrupted = make(tmp_path, augment=RandomResizedCrop(auto_augment="rand-m5")).train_dataloader()
    for batch in interrupted:
        assert torch.equal(batch.images, whole[0])
        break
    resumed = make(tmp_path, augment=RandomResizedCrop(auto_augment="rand-m5"), workers=2).train_dataloader()
    resumed.load_state_dict(interrupted.state_dict())
    rest = [batch.images for _ in range(2) for batch in resumed]
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest, strict=True))


def names_of(data: ImageData, split: Any) -> list[str]:
    images = data.split(split)
    return [os.path.relpath(images.name(index), data.root) for index in range(len(images))]


def test_without_a_validation_split_a_part_of_every_class_is_held_out(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", {"cat": 20, "dog": 10, "rat": 2, "one": 1})
    data = make(tmp_path, val_fraction=0.2)
    train, val = names_of(data, "train"), names_of(data, "val")
    assert not set(train) & set(val)
    assert len(train) + len(val) == 33
    assert np.bincount(data.split("val").labels).tolist() == [4, 2, 0, 1]  # cat, dog, one, rat
    assert names_of(make(tmp_path, val_fraction=0.2, seed=1), "val") != val
    assert names_of(data, "test") == names_of(data, "predict") == val


def test_usual_splits_are_found_and_given_ones_taken(tmp_path: Path) -> None:
    for split in ("train", "validation", "test", "extra"):
        write_folders(tmp_path / split, {split: 1} if split == "extra" else COUNTS)
    data = make(tmp_path)
    assert [names_of(data, split)[0].split(os.sep)[0] for split in ("train", "val", "test", "predict")] == [
        "train",
        "validation",
        "test",
        "test",
    ]
    assert names_of(make(tmp_path, splits=SplitNames(test="train")), "test")[0].startswith("train")


def test_a_root_of_classes_is_one_split(tmp_path: Path) -> None:
    data = make(write_folders(tmp_path / "photos", {"class10": 2, "class2": 2}))
    assert data.class_names == ["class2", "class10"]
    assert sorted(names_of(data, "train") + names_of(data, "val")) == sorted(
        f"class{c}/{n}.jpg" for c in (2, 10) for n in range(2)
    )


def test_a_limit_takes_so_many_of_each_class_whatever_the_seed(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_folders(tmp_path / split, {"cat": 9, "dog": 3})
    one, two = (make(tmp_path, limit=2, seed=seed) for seed in (0, 1))
    assert np.bincount(one.split("train").labels).tolist() == np.bincount(one.split("val").labels).tolist() == [2, 2]
    assert names_of(one, "train") == names_of(two, "train")
    assert set(names_of(one, "train")) < set(names_of(make(tmp_path, limit=4), "train"))
    assert len(names_of(make(tmp_path, limit=5), "train")) == 5 + 3


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(b"no picture" * 20)


def deleted(path: Path) -> None:
    path.unlink()


def replaced_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def broken_png(path: Path) -> None:
    Image.new("RGB", (40, 40)).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:45] + b"\0" * 60)


DAMAGES = [truncated, emptied, overwritten, deleted, replaced_by_a_directory, broken_png]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_ends_the_run_and_is_named(
    damage: Callable[[Path], None], workers: int, tmp_path: Path
) -> None:
    write_folders(tmp_path / "val", COUNTS)
    data = make(tmp_path, workers=workers)
    assert len(data.split("val")) == 9
    damage(tmp_path / "val" / "cat" / "3.jpg")
    with pytest.raises(UserError, match=r"^[^\n]*val/cat/3.jpg: cannot be read .*set data.on_error to skip$"):
        all_of(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_is_left_out_counted_and_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    write_folders(tmp_path / "val", COUNTS)
    data = make(tmp_path, on_error="skip")
    assert len(data.split("val")) == 9
    damage(tmp_path / "val" / "cat" / "3.jpg")
    index = [number for batch in all_of(data) for number in batch.row.tolist()]
    assert index == [0, 1, 2, 4, 5, 6, 7, 8]
    assert data.loaders["val"].damaged == {str(tmp_path / "val" / "cat" / "3.jpg")}


def test_a_damaged_image_in_a_tar_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "val.tar", {"cat/0.jpg": jpeg(0), "dog/0.jpg": jpeg(1)[:-90]})
    data = make(tmp_path, source="tar")
    with pytest.raises(UserError, match=r"val.tar:dog/0.jpg: cannot be read"):
        all_of(data)


def test_every_mode_of_a_picture_becomes_rgb(tmp_path: Path) -> None:
    (tmp_path / "val" / "cat").mkdir(parents=True)
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1"):
        suffix = "tif" if mode == "CMYK" else "png"
        Image.new(mode, (9, 9), 1 if mode in "1P" else None).save(tmp_path / "val" / "cat" / f"{mode}.{suffix}")
    assert [tuple(batch.images.shape) for batch in all_of(make(tmp_path))] == [(3, 3, 8, 8)] * 2


def test_webdataset_shards_may_be_indexed(tmp_path: Path) -> None:
    (write_shards(tmp_path, [3, 4]) / "classnames.txt").write_text("cat\ndog\n")
    data = make(tmp_path, source="tar", splits=SplitNames(val="train"))
    assert data.class_names == ["cat", "dog"]
    assert data.split("val").labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_data_files_of_the_hub_are_prepared(tmp_path: Path) -> None:
    table(list(range(6))).to_parquet(str(tmp_path / "train-0.parquet"))
    data = make(tmp_path, source="hfds", splits=SplitNames(val="train"))
    assert data.class_names == ["cat", "dog"]
    assert [n for batch in all_of(data) for n in batch.labels.tolist()] == [0, 1, 0, 1, 0, 1]


def missing(root: Path) -> dict[str, Any]:
    return {"root": str(root / "nowhere")}


def empty(root: Path) -> dict[str, Any]:
    (root / "train").mkdir()
    return {}


def an_empty_class(root: Path) -> dict[str, Any]:
    write_folders(root / "train", {"cat": 1, "dog": 0})
    return {}


def no_class_folder(root: Path) -> dict[str, Any]:
    write_folders(root, {"train": 1})
    return {}


def an_unknown_split(root: Path) -> dict[str, Any]:
    write_folders(root / "train", COUNTS)
    return {"splits": SplitNames(val="vla")}


def other_classes(root: Path) -> dict[str, Any]:
    write_folders(root / "train", COUNTS)
    write_folders(root / "val", {"cat": 1, "cow": 1})
    return {}


def nothing_to_hold_out(root: Path) -> dict[str, Any]:
    write_folders(root / "train", {"cat": 1})
    return {}


def not_a_tar(root: Path) -> dict[str, Any]:
    (root / "train.tar").write_bytes(b"no tar" * 1000)
    return {"source": "tar"}


def half_a_tar(root: Path) -> dict[str, Any]:
    tar = write_tar(root / "train.tar", {f"cat/{n}.jpg": jpeg(n) for n in range(3)})
    tar.write_bytes(tar.read_bytes()[:1200])
    return {"source": "tar"}


def no_data_set(root: Path) -> dict[str, Any]:
    return {"source": "hfds", "root": str(root / "nowhere")}


def no_label_column(root: Path) -> dict[str, Any]:
    table([0, 1]).rename_column("label", "class").cast_column("class", _integers()).save_to_disk(str(root / "saved"))
    return {"source": "hfds", "root": str(root / "saved")}


def _integers() -> Any:
    import datasets

    return datasets.Value("int64")


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (missing, "nowhere is not a directory"),
        (empty, "train: no images below it; they end in .jpg"),
        (an_empty_class, "no images in the class folder dog; fill or remove it"),
        (no_class_folder, "0.jpg is in no class folder"),
        (an_unknown_split, "data.splits.val: .* has no split vla"),
        (other_classes, "classes of split val are not those of the others; only one of them has .*'cow', 'dog'"),
        (nothing_to_hold_out, "no image can be held out for validation"),
        (not_a_tar, "train.tar: not a whole uncompressed tar file"),
        (half_a_tar, "train.tar: not a whole uncompressed tar file"),
        (no_data_set, "nowhere is no data set that `datasets` can load"),
        (no_label_column, r"one ClassLabel column is needed, found \[\] in \['img', 'class'\]"),
    ],
)
def test_a_mistake_is_named(mistake: Callable[[Path], dict[str, Any]], message: str, tmp_path: Path) -> None:
    settings = mistake(tmp_path)
    with pytest.raises(UserError, match=message):
        all_of(make(**{"root": tmp_path, **settings}))


def test_files_that_cannot_be_described_still_have_a_fingerprint(tmp_path: Path) -> None:
    write_folders(tmp_path / "val", COUNTS)
    data = make(tmp_path)
    whole = make(tmp_path).split("val").fingerprint
    images = data.split("val")
    shutil.rmtree(tmp_path / "val" / "cat")
    assert images.fingerprint != whole


def test_sixteen_bits_of_grey_become_eight() -> None:
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    pixels = np.asarray(decode(Encoded(file.getvalue(), 0)))
    assert np.array_equal(pixels[..., 0], grey // 257)
