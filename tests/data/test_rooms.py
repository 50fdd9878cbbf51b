"""Rooms show what their factors say, every factor only where it belongs."""

import colorsys
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from impact_lightning.data import rooms
from impact_lightning.data.rooms import Rooms

Vector = tuple[float, float, float]
Surface = tuple[float, Vector]  # distance along the ray, normal

ROOMS = Rooms()
MOVING = Rooms(move_object=True)


def plus(a: Vector, b: Vector, times: float = 1) -> Vector:
    return (a[0] + times * b[0], a[1] + times * b[1], a[2] + times * b[2])


def dot(a: Vector, b: Vector) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(a: Vector) -> Vector:
    return plus((0, 0, 0), a, 1 / math.sqrt(dot(a, a)))


def brightness(point: Vector, normal: Vector) -> float:
    to_lamp = unit(plus((-1, 5, -5), point, -1))
    return 0.35 + 0.65 * max(0.0, dot(normal, to_lamp))


def hits_of_sphere(eye: Vector, ray: Vector, centre: Vector, radius: float) -> list[Surface]:
    start = plus(eye, centre, -1)
    a, b, c = dot(ray, ray), dot(ray, start), dot(start, start) - radius**2
    if b * b < a * c:
        return []
    distance = (-b - math.sqrt(b * b - a * c)) / a
    return [(distance, unit(plus(start, ray, distance)))]


def hits_of_tube(eye: Vector, ray: Vector, centre: Vector, radius: float, half_height: float) -> list[Surface]:
    start = plus(eye, centre, -1)
    flat_start, flat_ray = (start[0], 0.0, start[2]), (ray[0], 0.0, ray[2])
    hits = hits_of_sphere(flat_start, flat_ray, (0, 0, 0), radius)
    return [(t, normal) for t, normal in hits if abs(start[1] + t * ray[1]) <= half_height]


def hits_of_face(
    eye: Vector, ray: Vector, centre: Vector, axis: int, side: float, reach: float, is_inside: Callable[[Vector], bool]
) -> list[Surface]:
    distance = (centre[axis] + side * reach - eye[axis]) / ray[axis]
    point = plus(plus(eye, ray, distance), centre, -1)
    normal = tuple(side * (i == axis) for i in range(3))
    return [(distance, (normal[0], normal[1], normal[2]))] if is_inside(point) else []


def hits_of_object(eye: Vector, ray: Vector, centre: Vector, shape: int, size: float) -> list[Surface]:
    if shape == 0:
        r = 0.64 * size

        def in_face(axis: int) -> Callable[[Vector], bool]:
            return lambda p: all(abs(p[i]) <= r for i in range(3) if i != axis)

        return [
            hit for i in range(3) for side in (-1, 1) for hit in hits_of_face(eye, ray, centre, i, side, r, in_face(i))
        ]
    if shape == 1:
        r = 0.72 * size
        caps = [
            hits_of_face(eye, ray, centre, 1, side, r, lambda p: p[0] ** 2 + p[2] ** 2 <= r * r) for side in (-1, 1)
        ]
        return [*caps[0], *caps[1], *hits_of_tube(eye, ray, centre, r, r)]
    if shape == 2:
        return hits_of_sphere(eye, ray, centre, 0.84 * size)
    r = 0.58 * size
    ends = [hits_of_sphere(eye, ray, plus(centre, (0, side * 0.7 * r, 0)), r) for side in (-1, 1)]
    return [*ends[0], *ends[1], *hits_of_tube(eye, ray, centre, r, 0.7 * r)]


def by_hand(size: int, factors: list[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Follow one ray after the other, nine per pixel, and lay the mean of the object over the mean of the room."""
    floor, wall, hue, scale, shape, orientation, x, y = factors
    colours = [np.array(colorsys.hsv_to_rgb(h / 10, 1, 1)) * 255 for h in (floor, wall, hue)]
    angle = math.radians(45 - 30 + orientation * 60 / 14)
    right, away = (math.cos(angle), 0.0, -math.sin(angle)), (math.sin(angle), 0.0, math.cos(angle))
    eye = plus((0, 3.3, 0), away, -6)
    ahead = unit(plus((0, 0.8, 0), eye, -1))
    up = unit(plus((0, 1, 0), ahead, -ahead[1]))
    s = 0.75 + scale / 14
    height = (0.64, 0.72, 0.84, 0.58 * 1.7)[shape] * s
    centre = plus(plus((0, height, 0), right, -0.6 + 0.3 * x), away, -0.5 + 0.625 * y)
    image, mask = np.zeros((3, size, size)), np.zeros((size, size), bool)
    for row, column in np.ndindex(size, size):
        room, thing, cover = np.zeros(3), np.zeros(3), 0
        for i, j in np.ndindex(3, 3):
            u = 0.41 * ((column + (j + 0.5) / 3) / size * 2 - 1)
            v = 0.41 * (1 - (row + (i + 0.5) / 3) / size * 2)
            ray = plus(plus(ahead, right, u), up, v)
            walls: list[tuple[float, Vector, int]] = []
            if ray[1] < 0:
                walls.append((-eye[1] / ray[1], (0, 1, 0), 0))
            if ray[0] > 0:
                walls.append(((3.2 - eye[0]) / ray[0], (-1, 0, 0), 1))
            if ray[2] > 0:
                walls.append(((3.2 - eye[2]) / ray[2], (0, 0, -1), 1))
            distance, normal, which = min(walls)
            room += colours[which] * brightness(plus(eye, ray, distance), normal) / 9
            hits = hits_of_object(eye, ray, centre, shape, s)
            if hits:
                distance, normal = min(hits)
                thing += colours[2] * brightness(plus(eye, ray, distance), normal) / 9
                cover += 1
        image[:, row, column] = room * (1 - cover / 9) + thing
        mask[row, column] = cover > 0
    return image, mask


@pytest.mark.parametrize("shape", range(4))
@pytest.mark.parametrize(("size", "seed"), [(16, 0), (16, 1), (21, 2)])
def test_equals_a_ray_caster_that_follows_one_ray_at_a_time(shape: int, size: int, seed: int) -> None:
    source = Rooms(size=size, move_object=True)
    factors = np.random.default_rng(seed).integers(0, source.grid.sizes)
    factors[source.grid.names.index("shape")] = shape
    images, masks = source.render(source.grid.index_of(factors[None]))
    image, mask = by_hand(size, factors.tolist())
    assert abs(images[0] - image).max() <= 1  # the room is rounded before the object is laid over it
    assert np.array_equal(masks[0], mask)


def vary(source: Rooms, name: str, *, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return random indices and the same with another level of one factor."""
    generator = np.random.default_rng(seed)
    factors = source.grid.factors_of(generator.integers(0, len(source), 40))
    others, column = factors.copy(), source.grid.names.index(name)
    size = source.grid.sizes[column]
    others[:, column] = (factors[:, column] + generator.integers(1, size, len(factors))) % size
    return source.grid.index_of(factors), source.grid.index_of(others)


def changed(source: Rooms, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which pixels a factor changes in some images, and their masks."""
    before, after = vary(source, name)
    images, masks = source.render(before)
    return (images != source.render(after)[0]).any(1), masks


def inner(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of masks all of whose neighbours belong to them as well."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(masks, [(0, 0), (1, 1), (1, 1)]), (3, 3), axis=(1, 2))
    return np.asarray(windows.all((-1, -2)))


def test_has_the_grid_of_shapes3d() -> None:
    assert len(ROOMS) == 480_000
    assert ROOMS.grid.names == ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
    assert ROOMS.grid.sizes == (10, 10, 10, 8, 4, 15)
    assert ROOMS.grid.class_names("shape") == ["cube", "cylinder", "sphere", "capsule"]


@pytest.mark.parametrize("source", [ROOMS, MOVING])
def test_the_mask_is_what_the_hue_of_the_object_changes(source: Rooms) -> None:
    pixels, masks = changed(source, "object_hue")
    assert np.array_equal(pixels, masks)


@pytest.mark.parametrize("name", ["floor_hue", "wall_hue"])
def test_the_hues_of_the_room_do_not_change_the_object(name: str) -> None:
    pixels, masks = changed(ROOMS, name)
    assert pixels.any((1, 2)).all()
    assert not (pixels & inner(masks)).any()


def test_floor_and_walls_share_only_pixels_on_their_edge() -> None:
    floor, masks = changed(ROOMS, "floor_hue")
    wall, masks_again = changed(ROOMS, "wall_hue")
    assert np.array_equal(masks, masks_again)
    assert (floor | wall | masks).all()
    assert not (floor & inner(wall & ~floor)).any()
    assert (floor & wall).mean() < 0.03  # an edge is a pixel or two high
    floor_below = np.diff((floor & ~wall & ~masks).astype(int) - (wall & ~floor & ~masks), axis=1)
    assert (floor_below[~(masks[:, 1:] | masks[:, :-1])] >= 0).all()  # going down, never from floor to wall


@pytest.mark.parametrize("name", MOVING.grid.names)
def test_every_factor_changes_every_image(name: str) -> None:
    pixels, _ = changed(MOVING, name)
    assert pixels.any((1, 2)).all()


@pytest.mark.parametrize("name", ["scale", "shape", "object_x", "object_y"])
def test_form_and_place_of_the_object_leave_the_rest_of_the_room_alone(name: str) -> None:
    before, after = vary(MOVING, name)
    (images, masks), (others, other_masks) = MOVING.render(before), MOVING.render(after)
    rest = ~(masks | other_masks)
    assert ((images != others).any(1) & rest).sum() == 0


def test_the_object_grows_with_scale() -> None:
    factors = np.array(
        [[0, 1, 2, scale, shape, turn] for shape in range(4) for turn in range(15) for scale in range(8)]
    )
    _, masks = ROOMS.render(ROOMS.grid.index_of(factors))
    assert (np.diff(masks.sum((1, 2)).reshape(4, 15, 8)) > 0).all()


def centres(**levels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean row and column (N, 2) of the object in rooms of some levels."""
    factors = np.full((5, 8), 2)
    for name, level in levels.items():
        factors[:, MOVING.grid.names.index(name)] = level
    _, masks = MOVING.render(MOVING.grid.index_of(factors))
    return np.array([np.argwhere(mask).mean(0) for mask in masks])


def test_the_object_moves_right_and_up_by_more_than_a_pixel_a_step() -> None:
    assert (np.diff(centres(object_x=np.arange(5))[:, 1]) > 1).all()
    assert (np.diff(centres(object_y=np.arange(5))[:, 0]) < -1).all()


def test_the_object_is_always_inside_of_the_image() -> None:
    places = [(x, y) for x in (0, 4) for y in (0, 4)]
    factors = [[0, 0, 0, 7, shape, turn, *place] for shape in range(4) for turn in range(15) for place in places]
    _, masks = MOVING.render(MOVING.grid.index_of(np.array(factors)))
    assert not masks[:, [0, -1]].any()
    assert not masks[:, :, [0, -1]].any()


def test_an_object_that_does_not_move_stands_at_one_of_the_places() -> None:
    index = np.random.default_rng(0).integers(0, len(ROOMS), 20)
    factors = np.hstack([ROOMS.grid.factors_of(index), np.tile(rooms.MIDDLE, (20, 1))])
    assert np.array_equal(ROOMS.render(index)[0], MOVING.render(MOVING.grid.index_of(factors))[0])


def test_a_batch_equals_its_images_one_by_one() -> None:
    index = np.random.default_rng(0).integers(0, len(MOVING), 20)
    images, masks = MOVING.render(index)
    singles = [MOVING.render(index[i : i + 1]) for i in range(20)]
    assert np.array_equal(images, np.concatenate([image for image, _ in singles]))
    assert np.array_equal(masks, np.concatenate([mask for _, mask in singles]))


def test_caches_change_nothing() -> None:
    index = np.random.default_rng(0).integers(0, len(ROOMS), 10)
    warm, _ = ROOMS.render(index)
    warm[:] = 0  # what a caller does to its images stays with the caller
    warm, _ = ROOMS.render(index)
    for cache in (rooms.empty_room, rooms.room_light, rooms.object_layer, rooms.camera):
        cache.cache_clear()
    assert np.array_equal(warm, ROOMS.render(index)[0])


def test_a_copy_for_another_process_renders_the_same() -> None:
    index = np.arange(0, len(ROOMS), 50_000)
    assert np.array_equal(pickle.loads(pickle.dumps(ROOMS)).render(index)[0], ROOMS.render(index)[0])


def test_a_small_image_is_a_large_one_from_afar() -> None:
    index = np.random.default_rng(0).integers(0, len(ROOMS), 20)
    small, _ = Rooms(size=32).render(index)
    pooled = ROOMS.render(index)[0].reshape(20, 3, 32, 2, 32, 2).mean((3, 5))
    assert abs(small - pooled).mean() < 1  # 9 rays in place of 36, which shows on the edges


def test_refuses_an_image_without_pixels() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        Rooms(size=0)
