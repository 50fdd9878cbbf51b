"""Sprites: the test images that viewers show, each once in the page, as a few large pictures."""

import io
import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from impact_lightning.data.thumbnail_file import Thumbnails
from impact_lightning.report.inputs import text_of

RGB = NDArray[np.uint8]

COLUMNS, PER_SHEET = 16, 256  # pictures of a sheet
ROOM = 10_000_000  # characters of all sheets together
QUALITIES = (85, 70, 55, 40)  # of the pictures: the first at which all have room; then they are halved in size
SMALLEST = 16  # pixels on the longer side: below, a picture shows nothing


class Known(NamedTuple):
    """What is known of an image."""

    picture: RGB | None
    label: int
    name: str


class Album:
    """The test images that a page shows; viewers share one, so that each image is in the page once."""

    def __init__(self, room: int = ROOM) -> None:
        self.room = room
        self.known: dict[tuple[str, int], Known] = {}
        self.used: dict[tuple[str, int], int] = {}  # place in the page
        self.quality = QUALITIES[0]

    def learn(self, thumbnails: Thumbnails) -> None:
        """Take in the pictures of a file; they come into the page when they are used."""
        images = thumbnails.images.numpy()
        for place, row in enumerate(thumbnails.rows.tolist()):
            found = Known(images[place], thumbnails.labels[place], short(thumbnails.names[place]))
            self.known.setdefault((thumbnails.data, row), found)

    def use(self, data: str, row: int) -> int:
        """Return the place of an image in the page; one without a picture has a place as well."""
        return self.used.setdefault((data, row), len(self.used))

    def rows_of(self, data: str) -> list[tuple[int, int]]:
        """Return rows and labels of the pictures at hand, in the order of rows."""
        return sorted((row, known.label) for (of, row), known in self.known.items() if of == data)

    def content(self) -> dict[str, Any]:
        """Return the pictures for the page: sheets, and of each image its sheet, its cell, row, label and name."""
        found = [self.known.get(key, Known(None, -1, "")) for key in self.used]
        sheets: list[tuple[int, int, list[RGB]]] = []
        cells: list[tuple[int, int] | None] = []
        open_sheet: dict[tuple[int, int], int] = {}  # of each size, the sheet that is being filled
        for one in found:
            if one.picture is None:
                cells.append(None)
                continue
            size = one.picture.shape[0], one.picture.shape[1]
            place = open_sheet.get(size)
            if place is None or len(sheets[place][2]) == PER_SHEET:
                place = open_sheet[size] = len(sheets)
                sheets.append((*size, []))
            cells.append((place, len(sheets[place][2])))
            sheets[place][2].append(one.picture)
        return {
            "columns": COLUMNS,
            "sheets": self._written(sheets),
            "cells": cells,
            "rows": [row for _, row in self.used],
            "labels": [one.label for one in found],
            "names": [one.name for one in found],
        }

    def _written(self, sheets: Sequence[tuple[int, int, list[RGB]]]) -> list[dict[str, Any]]:
        """Return sheets of the best quality at which all of them have room."""
        scale, written = 1, list[dict[str, Any]]()
        while True:
            for self.quality in QUALITIES:
                written = [_sheet(pictures, scale, self.quality) for _, _, pictures in sheets]
                if sum(len(sheet["uri"]) for sheet in written) <= self.room:
                    return written
            if all(max(sheet["height"], sheet["width"]) < 2 * SMALLEST for sheet in written):
                return written
            scale *= 2


def short(name: str) -> str:
    """Return what is enough to find a file: its name and its folder.

    Example:
        >>> short("/data/test/cat/0173.jpg")
        'cat/0173.jpg'
    """
    return "/".join(PurePath(name).parts[-2:])


def _sheet(pictures: Sequence[RGB], scale: int, quality: int) -> dict[str, Any]:
    h, w = (max(1, round(side / scale)) for side in pictures[0].shape[:2])
    rows = math.ceil(len(pictures) / COLUMNS)
    sheet = np.full((rows * h, min(COLUMNS, len(pictures)) * w, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        y, x = place // COLUMNS * h, place % COLUMNS * w
        sheet[y : y + h, x : x + w] = (
            picture if scale == 1 else np.asarray(Image.fromarray(picture).resize((w, h), Image.Resampling.LANCZOS))
        )
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "JPEG", quality=quality, subsampling=0)  # colours stay within their picture
    return {"height": h, "width": w, "uri": "data:image/jpeg;base64," + text_of(file.getvalue())}
