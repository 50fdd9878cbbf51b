"""Scenes as data: disjoint splits, labels from factors, and masks that fit their images."""

import numpy as np
import pytest
import torch

from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.data.sprites import Sprites
from impact_lightning.types import ImageBatch, Key, UserError


def data(label: list[str], **more: int) -> SceneData:
    return SceneData(Rooms(size=16), label, **{"n_train": 50, "n_val": 20, "n_test": 30, "batch_size": 10, **more})


def whole(scenes: SceneData, name: str = "test") -> ImageBatch:
    split = scenes.split(name)  # type: ignore[arg-type]
    return split.__getitems__([Key(0, row) for row in range(len(split))]).batch


def test_splits_are_disjoint_and_as_large_as_asked() -> None:
    scenes = data(["shape"])
    rows = [scenes.split(name).rows for name in ("train", "val", "test")]
    assert [len(part) for part in rows] == [50, 20, 30]
    assert len(np.unique(np.concatenate(rows))) == 100


def test_a_product_of_factors_is_a_label() -> None:
    scenes = data(["object_hue", "shape"])
    batch = whole(scenes)
    assert scenes.n_classes == 40
    assert batch.factors is not None
    hue, shape = batch.factors[:, 2], batch.factors[:, 4]
    assert torch.equal(batch.labels, hue * 4 + shape)


def test_masks_and_images_belong_together() -> None:
    batch = whole(data(["shape"]))
    assert batch.masks is not None
    assert batch.images.dtype == torch.uint8
    assert batch.masks.shape == (30, 16, 16)
    assert batch.masks.flatten(1).any(1).all()


def test_pixels_are_normalised_on_the_device() -> None:
    scenes = data(["shape"])
    batch = whole(scenes)
    normalised = scenes.on_after_batch_transfer(batch, 0).images
    torch.testing.assert_close(normalised, (batch.images.float() / 255 - 0.5) / 0.25)


def test_sprites_have_one_channel() -> None:
    scenes = SceneData(Sprites(), ["shape", "scale"], n_train=10, n_val=5, n_test=5, batch_size=5)
    assert whole(scenes).images.shape == (5, 1, 64, 64)
    assert scenes.n_classes == 18


def test_another_label_or_seed_is_another_data_set() -> None:
    prints = [
        data(label, seed=seed).fingerprint("test")
        for label, seed in ((["shape"], 0), (["shape"], 1), (["scale"], 0), (["shape"], 0))
    ]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="at most 480000"):
        data(["shape"], n_train=480_000)


def test_a_batch_of_nothing_has_the_shape_of_a_batch() -> None:
    batch = data(["shape"]).split("test").__getitems__([]).batch
    assert batch.images.shape == (0, 3, 16, 16)
    assert batch.labels.shape == (0,)
