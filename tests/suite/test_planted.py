"""Planted truths: values of factors that latents stand for."""

import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.sae.features import Features
from impact_lightning.suite.collect import _scenes
from impact_lightning.suite.levels import Level, Levels
from impact_lightning.suite.outcome import Unit
from impact_lightning.suite.planted import TOP, recovered
from impact_lightning.suite.sources import Shared
from tests.suite.plans import plan

N, K = 600, 4
VALUES = torch.stack([torch.arange(N) % K, torch.from_numpy(np.random.default_rng(0).integers(3, size=N))], 1)


def features(image: Tensor) -> Features:
    empty = torch.zeros(len(image))
    return Features(**{**dict.fromkeys(Features._fields, empty), "image": image})


def of_value(factor: int, value: int, wrong: int = 0) -> Tensor:
    """Return top images of a latent that stands for a value, some of them of another one."""
    right, other = (torch.nonzero((VALUES[:, factor] == value) == is_it).flatten() for is_it in (True, False))
    return torch.cat([right[: TOP - wrong], other[:wrong]])


def test_latents_that_stand_for_every_value_are_all_found() -> None:
    image = torch.stack([*(of_value(0, value) for value in range(K)), *(of_value(1, value) for value in range(3))])
    value, null, most = recovered(features(image), VALUES)
    assert value == 1.0
    assert null <= most < 0.2


@pytest.mark.parametrize(("wrong", "found"), [(0, 1), (1, 1), (2, 0)])
def test_nine_of_ten_top_images_have_to_show_it(wrong: int, found: int) -> None:
    value, _, _ = recovered(features(of_value(0, 2, wrong)[None]), VALUES)
    assert value == pytest.approx(found / 7)


def test_random_latents_find_no_more_than_chance() -> None:
    image = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(i))[:TOP] for i in range(40)])
    value, _, most = recovered(features(image), VALUES)
    assert value <= most


def test_latents_that_fire_on_few_images_stand_for_nothing() -> None:
    image = of_value(0, 1)
    image[-1] = -1
    assert recovered(features(image[None]), VALUES)[0] == 0.0
    assert recovered(features(image[None][:0]), VALUES)[0] == 0.0


def test_the_order_of_latents_does_not_matter() -> None:
    image = torch.stack([of_value(0, value, wrong=value) for value in range(K)])
    assert recovered(features(image), VALUES) == recovered(features(image.flip(0)), VALUES)


def test_factors_are_those_of_the_images_that_the_level_has_read() -> None:
    rooms = {"class_path": "impact_lightning.data.rooms.Rooms", "init_args": {"size": 16}}
    images = {"source": rooms, "label": ["shape"], "n_train": 40, "n_val": 8, "n_test": 12}
    data = {"class_path": "impact_lightning.data.scenes.SceneData", "init_args": images}
    sae = Level(data={"sites": ["blocks.0.resid_post"]}, images={"n_train": 50, "n_test": 20})
    made = plan(shared=Shared(data, {"name": "vit"}, {}), levels=Levels(sae=sae))
    names = ("dense/test", "sae/dense/test", "sae/wanda70/test")
    units = [Unit(name, "", [], "test", "", "", [], "failed" if "wanda" in name else "done") for name in names]
    found = _scenes(made, units)
    assert {name: len(scenes.split("test").rows) for name, scenes in found.items()} == {
        "dense/test": 12,
        "sae/dense/test": 20,
    }
    own, other = (set(scenes.split("test").rows.tolist()) for scenes in found.values())
    assert not own <= other  # another cut of the same scenes
