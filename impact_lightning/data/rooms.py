"""Rendered rooms: the grid of Shapes3D without its file, ray-cast on the CPU."""

import colorsys
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from impact_lightning.data.factors import FactorGrid
from impact_lightning.data.scene_source import SceneSource
from impact_lightning.types import UserError

# Vectors are columns: a point is (3, 1), N points are (3, N). x and z run along the floor, y points up, and the origin
# is the middle of the floor.
Array = NDArray[np.float64]
Plane = NDArray[np.float32]  # (h, w)

HUES = ("red", "orange", "lime", "green", "mint", "cyan", "azure", "indigo", "purple", "pink")
COLOURS = 255 * np.array([colorsys.hsv_to_rgb(hue / len(HUES), 1, 1) for hue in range(len(HUES))], np.float32)
SCALES = np.linspace(0.75, 1.25, 8)
AZIMUTHS = np.radians(np.linspace(-30, 30, 15))
OFFSETS_X = np.linspace(-0.6, 0.6, 5)  # of an object from the middle of the room, to the right
OFFSETS_Y = np.linspace(-0.5, 2.0, 5)  # and away from the camera
MIDDLE = (2, 1)  # where an object stands that does not move

SHAPES3D_GRID = FactorGrid(
    names=("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation"),
    sizes=(len(HUES), len(HUES), len(HUES), len(SCALES), 4, len(AZIMUTHS)),
    levels=(HUES, HUES, HUES, (), ("cube", "cylinder", "sphere", "capsule"), ()),
)
MOVING_GRID = FactorGrid(
    names=(*SHAPES3D_GRID.names, "object_x", "object_y"),
    sizes=(*SHAPES3D_GRID.sizes, len(OFFSETS_X), len(OFFSETS_Y)),
    levels=(*SHAPES3D_GRID.levels, (), ()),
)

UP = np.array([[0.0], [1], [0]])
PLANES = np.array([[3.2], [0], [3.2]])  # the wall at x = 3.2, the floor at y = 0, the wall at z = 3.2
OUTWARD = np.array([[1], [-1], [1]])  # which way along its axis each of them is left
FLOOR = 1
LAMP = np.array([[-1.0], [5], [-5]])
AMBIENT = 0.35  # light on a surface that faces away from the lamp
EYE_HEIGHT, EYE_DISTANCE, TARGET_HEIGHT = 3.3, 6.0, 0.8
HALF_VIEW = 0.41  # half the height of what is seen at distance 1
RAYS = 3  # per pixel, down and across


class Rooms(SceneSource):
    """A cube, cylinder, sphere or capsule in the corner of a coloured room: the grid of Shapes3D.

    The images are numbered like those of `3dshapes.h5`. Orientation moves the camera around the room by -30 to 30
    degrees. There are no shadows and no reflections: the object changes the pixels of its mask and no others. Edges are
    smooth, a pixel is the mean of nine rays.

    Args:
        size: Height and width of an image in pixels.
        move_object: Add the factors `object_x`, to the right, and `object_y`, away from the camera and up in the image.
    """

    channels = 3

    def __init__(self, *, size: int = 64, move_object: bool = False) -> None:
        if size < 1:
            raise UserError(f"size of the rooms must be at least 1 pixel, got {size}")
        self.size = size
        self.grid = MOVING_GRID if move_object else SHAPES3D_GRID

    def render(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return images `(B, 3, size, size)`, and masks `(B, size, size)` of the pixels that the object touches."""
        images = np.empty((len(index), 3, self.size, self.size), np.uint8)
        masks = np.zeros((len(index), self.size, self.size), np.bool_)
        factors = self.grid.factors_of(index).tolist()
        for image, mask, (floor, wall, hue, scale, shape, azimuth, *xy) in zip(images, masks, factors, strict=True):
            image[:] = empty_room(self.size, azimuth, floor, wall)
            rows, columns, free, light = object_layer(self.size, azimuth, shape, scale, *(xy or MIDDLE))
            box = image[:, rows, columns]
            box[:] = box * free + paint(hue, light) + 0.5  # rounds, as the cast to uint8 cuts off
            mask[rows, columns] = free < 1
        return images, masks


class ObjectLayer(NamedTuple):
    """An object to lay over an empty room, within some rows and columns of the image."""

    rows: slice
    columns: slice
    free: Plane  # share of each pixel that the object leaves uncovered
    light: Plane  # from the object


# The arguments are levels of factors. The caches change no result and have room for the whole grid: at 64 pixels 18 MB
# of empty rooms, and 3 MB of objects, or 60 MB where they move.


@lru_cache(maxsize=1500)
def empty_room(size: int, azimuth: int, floor: int, wall: int) -> NDArray[np.uint8]:
    """Return the image `(3, size, size)` of a room without object."""
    floor_light, wall_light = room_light(size, azimuth)
    return (paint(floor, floor_light) + paint(wall, wall_light) + 0.5).astype(np.uint8)


@lru_cache(maxsize=15)
def room_light(size: int, azimuth: int) -> tuple[Plane, Plane]:
    """Return the light from the floor and from the walls in each pixel."""
    whole = slice(0, size)
    eye, directions = rays(size, azimuth, whole, whole)
    ahead = directions * OUTWARD > 0
    distances = np.divide(PLANES - eye, directions, out=np.full_like(directions, np.inf), where=ahead)
    plane = distances.argmin(0)  # (N,)
    normals = np.where(plane == [[0], [1], [2]], -OUTWARD, 0)  # (3, N)
    light = lamp_light(eye + distances.min(0) * directions, normals)
    return mean_of_rays(light * (plane == FLOOR), whole, whole), mean_of_rays(light * (plane != FLOOR), whole, whole)


@lru_cache(maxsize=12_000)
def object_layer(size: int, azimuth: int, shape: int, scale: int, x: int, y: int) -> ObjectLayer:
    """Return the layer of one object."""
    solid = SOLIDS[shape]
    unit = solid.unit * SCALES[scale]
    right, away = heading(azimuth)
    centre = OFFSETS_X[x] * right + OFFSETS_Y[y] * away + unit * solid.half_height * UP  # it stands on the floor
    rows, columns = box_around(size, azimuth, centre, unit * np.array([[1], [solid.half_height], [1]]))
    eye, directions = rays(size, azimuth, rows, columns)
    distances = solid.hit((eye - centre) / unit, directions / unit)  # (N,)
    is_hit = np.isfinite(distances)
    points = eye + np.where(is_hit, distances, 0) * directions  # (3, N)
    light = lamp_light(points, solid.normal((points - centre) / unit))
    free = 1 - mean_of_rays(is_hit, rows, columns)
    return ObjectLayer(rows, columns, free, mean_of_rays(light * is_hit, rows, columns))


def paint(hue: int, light: Plane) -> NDArray[np.float32]:
    """Return the colour `(3, h, w)` of a surface of one hue under a light."""
    colour: NDArray[np.float32] = COLOURS[hue][:, None, None] * light
    return colour


def lamp_light(points: Array, normals: Array) -> Array:
    """Return the brightness `(N,)`, from 0 to 1, of points `(3, N)` on matt surfaces."""
    to_lamp = LAMP - points
    cosine: Array = (normals * to_lamp).sum(0) / np.sqrt((to_lamp**2).sum(0))
    return AMBIENT + (1 - AMBIENT) * np.maximum(cosine, 0)


def heading(azimuth: int) -> tuple[Array, Array]:
    """Return the level directions `(3, 1)` right and away, as the camera sees it."""
    angle = np.pi / 4 + AZIMUTHS[azimuth]  # the middle azimuth looks into the corner
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.array([[cosine], [0], [-sine]]), np.array([[sine], [0], [cosine]])


@lru_cache(maxsize=15)
def camera(azimuth: int) -> tuple[Array, Array]:
    """Return where the camera is, `(3, 1)`, and its axes right, down and ahead, the columns of `(3, 3)`."""
    right, away = heading(azimuth)
    eye = EYE_HEIGHT * UP - EYE_DISTANCE * away
    ahead = (TARGET_HEIGHT * UP - eye) / np.linalg.norm(TARGET_HEIGHT * UP - eye)
    return eye, np.hstack([right, np.cross(right, ahead, axis=0), ahead])


def rays(size: int, azimuth: int, rows: slice, columns: slice) -> tuple[Array, Array]:
    """Return where all rays start, `(3, 1)`, and their directions `(3, N)` through a box of pixels, row by row."""
    eye, axes = camera(azimuth)
    steps = HALF_VIEW * (2 * (np.arange(size * RAYS) + 0.5) / (size * RAYS) - 1)
    x, y = np.meshgrid(*(steps.reshape(size, RAYS)[pixels].ravel() for pixels in (columns, rows)))  # (h * R, w * R)
    return eye, axes @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])


def mean_of_rays(values: NDArray[np.generic], rows: slice, columns: slice) -> Plane:
    """Return the mean `(h, w)` per pixel of values `(N,)` per ray."""
    values = values.reshape(rows.stop - rows.start, RAYS, columns.stop - columns.start, RAYS)
    mean: Plane = values.mean((1, 3)).astype(np.float32)
    return mean


def box_around(size: int, azimuth: int, centre: Array, half: Array) -> tuple[slice, slice]:
    """Return the rows and columns that show a box in the room with half the sides `half` `(3, 1)`."""
    eye, axes = camera(azimuth)
    signs = np.array(list(np.ndindex(2, 2, 2))).T * 2 - 1  # (3, 8)
    x, y, depth = axes.T @ (centre + signs * half - eye)
    pixels = size * (np.stack([y, x]) / (HALF_VIEW * depth) + 1) / 2  # (2, 8)
    start, stop = np.floor(pixels.min(1)).astype(int), np.ceil(pixels.max(1)).astype(int)
    return slice(start[0], stop[0]), slice(start[1], stop[1])


class Solid(NamedTuple):
    """A convex solid around the origin, from -1 to 1 in x and z and from -half_height to half_height in y."""

    hit: Callable[[Array, Array], Array]  # start (3, 1), directions (3, N) -> distances (N,), infinite where missed
    normal: Callable[[Array], Array]  # points on the surface (3, N) -> directions of length 1
    half_height: float
    unit: float  # half its width in the room at scale 1


def hit_cube(start: Array, directions: Array) -> Array:
    """Return the distances to the cube."""
    enter, leave = between_faces(start, directions)  # (3, N)
    return entry(enter.max(0), leave.min(0))


def hit_cylinder(start: Array, directions: Array, half_height: float = 1) -> Array:
    """Return the distances to an upright cylinder."""
    enter, leave = within_radius(start[[0, 2]], directions[[0, 2]])
    above, below = between_faces(start[1] / half_height, directions[1] / half_height)
    return entry(np.maximum(enter, above), np.minimum(leave, below))


def hit_sphere(start: Array, directions: Array) -> Array:
    """Return the distances to the sphere."""
    return entry(*within_radius(start, directions))


def hit_capsule(start: Array, directions: Array) -> Array:
    """Return the distances to an upright cylinder with a half sphere at both ends."""
    bottom, top = (hit_sphere(start - end * UP, directions) for end in (-CORE, CORE))
    return np.minimum(hit_cylinder(start, directions, CORE), np.minimum(bottom, top))


def between_faces(start: Array, directions: Array) -> tuple[Array, Array]:
    """Return from where to where along the rays each coordinate is between -1 and 1."""
    middle, half = -start / directions, 1 / abs(directions)
    return middle - half, middle + half


def within_radius(start: Array, directions: Array) -> tuple[Array, Array]:
    """Return from where to where along the rays `(n, N)` the norm is at most 1; nan where it never is."""
    a, b, c = (directions**2).sum(0), (directions * start).sum(0), (start**2).sum(0) - 1  # a t² + 2 b t + c = 0
    root = np.sqrt(np.where(b**2 >= a * c, b**2 - a * c, np.nan))
    return (-b - root) / a, (-b + root) / a


def entry(enter: Array, leave: Array) -> Array:
    """Return where the rays enter, infinite where they have left by then or never enter."""
    return np.where(enter < leave, enter, np.inf)  # false for nan


def cube_normal(points: Array) -> Array:
    """Return the normals of the cube."""
    normals: Array = np.sign(points) * (abs(points).argmax(0) == [[0], [1], [2]])
    return normals


def cylinder_normal(points: Array) -> Array:
    """Return the normals of the cylinder."""
    across = points * (1 - UP)
    normals: Array = np.where((across**2).sum(0) > points[1] ** 2, across, np.sign(points) * UP)
    return normals


def sphere_normal(points: Array) -> Array:
    """Return the normals of the sphere."""
    return points


def capsule_normal(points: Array) -> Array:
    """Return the normals of the capsule, which point away from the nearest point of its axis."""
    normals: Array = points - np.clip(points, -CORE, CORE) * UP
    return normals


CORE = 0.7  # half the height of the capsule's cylinder
SOLIDS = (
    Solid(hit_cube, cube_normal, half_height=1, unit=0.64),
    Solid(hit_cylinder, cylinder_normal, half_height=1, unit=0.72),
    Solid(hit_sphere, sphere_normal, half_height=1, unit=0.84),
    Solid(hit_capsule, capsule_normal, half_height=1 + CORE, unit=0.58),
)
