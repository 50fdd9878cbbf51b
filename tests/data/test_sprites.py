"""Sprites show the shape, size, turn and place that their factors say, and nothing else."""

import cmath
import math
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray

from impact_lightning.data.sprites import Sprites, draw_sprites

SPRITES = Sprites()


def is_in_shape(shape: int, x: float, y: float) -> bool:
    """Tell whether a point, y upwards, lies in an upright shape of full size around the origin."""
    if shape == 0:
        return -10.8 <= x <= 10.8 and -10.8 <= y <= 10.8
    if shape == 1:
        return math.hypot(x / 15.2, y / 8.2) <= 1
    x, y = x / 12, y / 12 + 0.25
    return (x * x + y * y - 1) ** 3 - x * x * y * y * y <= 0


def by_hand(shape: int, scale: int, orientation: int, x: int, y: int) -> NDArray[np.bool_]:
    """Test one pixel centre after the other."""
    mask = np.zeros((64, 64), bool)
    for row in range(64):
        for column in range(64):
            offset = complex(column - (16 + x), (16 + y) - row)
            upright = offset * cmath.exp(-2j * math.pi * orientation / 39) / (0.5 + 0.1 * scale)
            mask[row, column] = is_in_shape(shape, upright.real, upright.imag)
    return mask


@pytest.mark.parametrize(
    "factors",
    [(0, 5, 0, 0, 0), (0, 2, 7, 31, 4), (1, 5, 13, 31, 31), (1, 0, 39, 3, 30), (2, 5, 5, 0, 31), (2, 1, 20, 9, 9)],
)
def test_equals_a_test_of_every_pixel(factors: tuple[int, ...]) -> None:
    index = SPRITES.grid.index_of(np.array([factors]))
    _, masks = SPRITES.render(index)
    assert np.array_equal(masks[0], by_hand(*factors))


def test_has_the_grid_of_dsprites() -> None:
    assert len(SPRITES) == 737_280
    assert SPRITES.grid.sizes == (3, 6, 40, 32, 32)
    assert SPRITES.grid.class_names("shape") == ["square", "ellipse", "heart"]


def test_images_are_white_on_their_mask_and_black_elsewhere() -> None:
    images, masks = SPRITES.render(np.random.default_rng(0).integers(0, len(SPRITES), 50))
    assert images.shape == (50, 1, 64, 64)
    assert images.dtype == np.uint8
    assert np.array_equal(images[:, 0], np.where(masks, 255, 0))


def test_a_batch_equals_its_images_one_by_one() -> None:
    index = np.random.default_rng(0).integers(0, len(SPRITES), 20)
    images, _ = SPRITES.render(index)
    assert np.array_equal(images, np.concatenate([SPRITES.render(index[i : i + 1])[0] for i in range(20)]))


def test_a_copy_for_another_process_renders_the_same() -> None:
    index = np.arange(0, len(SPRITES), 50_000)
    assert np.array_equal(pickle.loads(pickle.dumps(SPRITES)).render(index)[0], SPRITES.render(index)[0])


def test_area_grows_with_scale() -> None:
    area = draw_sprites(np.linspace(0.5, 1, 6), np.linspace(0, 6, 40)).sum((3, 4))  # (shapes, scales, angles)
    assert (np.diff(area, axis=1) > 0).all()


def test_a_quarter_turn_leaves_the_square_unchanged() -> None:
    sprites = draw_sprites(np.linspace(0.5, 1, 6), 0.3 + np.array([0, math.pi / 2]))
    assert np.array_equal(sprites[0, :, 0], sprites[0, :, 1])


def test_a_half_turn_leaves_the_ellipse_unchanged_and_not_the_heart() -> None:
    sprites = draw_sprites(np.ones(1), 0.3 + np.array([0, math.pi]))
    assert np.array_equal(sprites[1, :, 0], sprites[1, :, 1])
    assert not np.array_equal(sprites[2, :, 0], sprites[2, :, 1])


@pytest.mark.parametrize(("name", "axis"), [("position_x", 1), ("position_y", 0)])
def test_a_step_of_position_moves_the_sprite_by_one_pixel(name: str, axis: int) -> None:
    factors = np.repeat([[2, 5, 17, 12, 12]], 2, axis=0)
    factors[1, SPRITES.grid.names.index(name)] += 1
    _, masks = SPRITES.render(SPRITES.grid.index_of(factors))
    assert np.array_equal(np.roll(masks[0], 1, axis), masks[1])


def test_every_shape_scale_and_angle_is_whole_at_every_position() -> None:
    area = draw_sprites(np.linspace(0.5, 1, 6), np.linspace(0, 2 * np.pi, 40)).sum((3, 4))
    factors = np.array([[*which, x, y] for which in np.ndindex(3, 6, 40) for x in (0, 31) for y in (0, 31)])
    _, masks = SPRITES.render(SPRITES.grid.index_of(factors))
    assert np.array_equal(masks.sum((1, 2)).reshape(3, 6, 40, 4), np.repeat(area[..., None], 4, axis=-1))


def test_a_sprite_keeps_clear_of_the_edge_of_its_drawing() -> None:
    sprites = draw_sprites(np.ones(1), np.linspace(0, 2 * np.pi, 100))  # cut off where it did not fit
    circle = np.hypot(*np.mgrid[-15:16, -15:16]) <= 15.3
    assert not (sprites & ~circle).any()
