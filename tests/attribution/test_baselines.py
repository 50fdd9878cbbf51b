"""Baselines are functions of an image and a seed, and of nothing else."""

import math

import pytest
import torch

from impact_lightning.attribution.baselines import Centre, Random
from tests.attribution.literal import build, random_images

TARGETS = torch.tensor([1, 0, 4])


def test_random_belongs_to_the_image_and_the_seed() -> None:
    model, images = build("plain"), random_images()
    maps = Random()(model, images, TARGETS)
    assert len(maps.unique()) == maps.numel()
    assert 0 <= maps.min() < maps.max() < 1
    torch.testing.assert_close(Random()(model, images.flip(0), TARGETS).flip(0), maps, rtol=0, atol=0)
    assert not torch.equal(Random(seed=1)(model, images, TARGETS), maps)
    assert not torch.equal(Random()(model, images + 1, TARGETS), maps)


def test_centre_falls_with_the_distance() -> None:
    maps = Centre()(build("plain"), random_images(), TARGETS)
    for y in range(4):
        for x in range(4):
            closer = math.sqrt(4.5) - math.sqrt((y - 1.5) ** 2 + (x - 1.5) ** 2)
            assert maps[1, y, x].item() == pytest.approx(closer, abs=1e-12)
    assert maps.min() == 0
