"""Benchmarks of rendered scenes: images per second on one core, beside a plain copy of a batch of the same size."""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypedDict

import numpy as np

from impact_lightning.data import rooms
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scene_source import SceneSource
from impact_lightning.data.sprites import Sprites

BATCH, REPEATS = 256, 21


class Measurement(TypedDict):
    """One line of the benchmark: a figure and the floor measured beside it."""

    name: str
    images_per_second: float
    floor_images_per_second: float
    ratio: float
    target: float
    setup: dict[str, str | int]


def scenes() -> list[Measurement]:
    """Measure sprites and rooms after a warm-up, and rooms that have to be cast anew."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        return [
            measure("sprites", Sprites(), target=20_000),
            measure("rooms", Rooms(), target=3_000),
            measure("rooms with a moving object", Rooms(move_object=True), target=3_000),
            measure("rooms with a moving object, first sight", Rooms(move_object=True), target=500, before=forget),
        ]
    finally:
        os.sched_setaffinity(0, cores)


def measure(name: str, source: SceneSource, *, target: float, before: Callable[[], None] = lambda: None) -> Measurement:
    """Return the median rate of random batches; `before` runs untimed before each."""
    generator = np.random.default_rng(0)
    # The factors of the objects are the fastest: the first 12,000 images show all of them.
    for index in np.split(np.concatenate([np.arange(12_032), generator.integers(0, len(source), 20_480)]), 127):
        source.render(index)
    figures, floors = [], []
    for _ in range(REPEATS):
        index = generator.integers(0, len(source), BATCH)
        before()
        figures.append(seconds(partial(source.render, index)))
        images, _ = source.render(index)
        floors.append(seconds(images.copy))
    rate, floor = BATCH / statistics.median(figures), BATCH / statistics.median(floors)
    return Measurement(
        name=name,
        images_per_second=rate,
        floor_images_per_second=floor,
        ratio=floor / rate,
        target=target,
        setup={"batch": BATCH, "repeats": REPEATS, "cores": 1, "size": source.size},
    )


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def forget() -> None:
    """Empty the caches of the rooms' objects."""
    rooms.object_layer.cache_clear()


if __name__ == "__main__":
    scenes()
