"""Transforms are timm's, end in bytes, and vary training images by seed, epoch and sample alone."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from impact_lightning.data.module import normalise
from impact_lightning.data.transforms import Augment, EvalTransform, FlipCrop, Pixels, Preprocess, RandomResizedCrop
from impact_lightning.types import Key, UserError

MODELS = ["deit3_small_patch16_224.fb_in1k", "vit_base_patch16_clip_224.openai", "beit_base_patch16_224"]
HERE = Key(epoch=0, row=0)


def picture(h: int, w: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(h + w).integers(0, 256, (h, w, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", [(224, 224), (300, 250), (100, 333)])
@pytest.mark.parametrize(
    "preprocess",
    [
        *(Preprocess(of=name) for name in MODELS),
        Preprocess(size=32, crop_pct=1.0),
        Preprocess(interpolation="bilinear"),
    ],
    ids=lambda preprocess: str(preprocess.of),
)
def test_bytes_normalised_later_equal_the_transform_of_timm(preprocess: Preprocess, shape: tuple[int, int]) -> None:
    expected = create_transform(**preprocess.resolved, is_training=False)(picture(*shape))
    pixels = torch.from_numpy(EvalTransform(preprocess)(picture(*shape), HERE).copy())
    mean, std = preprocess.resolved["mean"], preprocess.resolved["std"]
    assert torch.equal(normalise(pixels[None], mean, std)[0], expected)


def test_a_picture_that_fits_is_passed_through() -> None:
    image = picture(32, 32)
    pixels = EvalTransform(Preprocess(size=32, crop_pct=1.0))(image, HERE)
    assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))


def test_every_field_can_be_set_beside_a_model() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    preprocess = Preprocess(of=MODELS[0], size=64, mean=mean, std=std, interpolation="box", crop_pct=0.5)
    assert preprocess.resolved == {
        "input_size": (3, 64, 64),
        "mean": mean,
        "std": std,
        "interpolation": "box",
        "crop_pct": 0.5,
        "crop_mode": "center",
    }


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("deit3_smal_patch16_224", "did you mean deit3_small_patch16_224 or"),
        ("deit3_small_patch16_224.fb_in21k", "did you mean deit3_small_patch16_224.fb_in1k or"),
        ("?", "set size, mean and std instead"),
    ],
)
def test_an_unknown_model_is_refused_with_names_that_are_alike(name: str, alike: str) -> None:
    with pytest.raises(UserError, match="timm has no model") as error:
        Preprocess(of=name).resolved  # noqa: B018  # the property does the work
    assert alike in str(error.value)


def shifted_by_hand(image: Pixels, pad: int, top: int, left: int, *, mirrored: bool) -> Pixels:
    framed = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
    cut = framed[:, top : top + image.shape[1], left : left + image.shape[2]]
    return np.flip(cut, axis=2) if mirrored else cut


def test_flip_and_crop_gives_every_shift_and_flip_and_nothing_else() -> None:
    image = picture(5, 5)
    x = np.asarray(image).transpose(2, 0, 1)
    possible = {
        shifted_by_hand(x, 1, top, left, mirrored=mirrored).tobytes()
        for top in range(3)
        for left in range(3)
        for mirrored in (False, True)
    }
    transform = FlipCrop(pad=1).transform(Preprocess(size=5, crop_pct=1.0), seed=0)
    seen = {np.ascontiguousarray(transform(image, Key(0, index))).tobytes() for index in range(400)}
    assert seen == possible


AUGMENTS = [
    FlipCrop(),
    RandomResizedCrop(),
    RandomResizedCrop(scale=(0.5, 1.0), auto_augment="rand-m9-mstd0.5-inc1"),
    RandomResizedCrop(color_jitter=0.4),
]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_an_augmented_image_depends_on_seed_epoch_and_sample_alone(augment: Augment) -> None:
    def draw(seed: int, key: Key) -> bytes:
        transform = augment.transform(Preprocess(size=24), seed)
        return np.ascontiguousarray(transform(picture(40, 50), key)).tobytes()

    keys = [(seed, Key(epoch, index)) for seed in range(3) for epoch in range(3) for index in range(3)]
    first = [draw(seed, key) for seed, key in keys]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert [draw(seed, key) for seed, key in keys] == first
    assert len(set(first)) > 20


@pytest.mark.parametrize("augment", AUGMENTS)
def test_the_random_numbers_of_the_process_are_left_alone(augment: Augment) -> None:
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # type: ignore[index]
    augment.transform(Preprocess(size=24), seed=0)(picture(40, 50), HERE)
    after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert before == after


@pytest.mark.parametrize("policy", ["nothing", "rand-x9"])
def test_an_unknown_policy_is_refused(policy: str) -> None:
    with pytest.raises(UserError, match=f"timm has no policy {policy}"):
        RandomResizedCrop(auto_augment=policy)


def test_shifts_and_crops_that_no_image_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.augment.pad must not be negative, got -1"):
        FlipCrop(pad=-1)
    with pytest.raises(UserError, match=r"data.augment.scale must rise"):
        RandomResizedCrop(scale=(0.5, 0.1))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"crop_pct": 0.0}, {"crop_pct": 1.5}])
def test_refuses_what_no_image_can_have(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"data.preprocess.{next(iter(wrong))}"):
        Preprocess(**wrong)  # type: ignore[arg-type]
