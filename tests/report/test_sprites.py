"""Sprites: pictures in sheets, each once, and never more than there is room for."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from impact_lightning.data.thumbnail_file import Thumbnails
from impact_lightning.report.sprites import COLUMNS, PER_SHEET, Album


def thumbnails(n: int, height: int = 16, width: int = 16, data: str = "data") -> Thumbnails:
    draws = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (n, 3, 4, 4), generator=draws).float()
    images = torch.nn.functional.interpolate(coarse, (height, width)).round().to(torch.uint8).permute(0, 2, 3, 1)
    return Thumbnails(torch.arange(n), images.contiguous(), [0] * n, [f"/there/a/{row}.png" for row in range(n)], data)


def sheet(uri: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def test_a_picture_is_in_its_cell() -> None:
    album = Album()
    album.learn(known := thumbnails(40))
    places = [album.use("data", row) for row in (39, 3, 20, 3, *range(40))]
    content = album.content()
    assert places[:4] == [0, 1, 2, 1]
    assert content["rows"][:3] == [39, 3, 20]
    assert content["names"][1] == "a/3.png"
    pixels = sheet(content["sheets"][0]["uri"])
    for place in (0, 1, 17):
        _, cell = content["cells"][place]
        y, x = cell // COLUMNS * 16, cell % COLUMNS * 16
        shown = pixels[y : y + 16, x : x + 16].astype(float)
        assert np.abs(shown - known.images[content["rows"][place]].numpy()).mean() < 25  # the picture is compressed


def test_pictures_of_two_sizes_or_too_many_take_two_sheets() -> None:
    album = Album()
    album.learn(thumbnails(PER_SHEET + 1))
    album.learn(thumbnails(1, 8, 24, "other"))
    for row in range(PER_SHEET + 1):
        album.use("data", row)
    album.use("other", 0)
    content = album.content()
    assert [(one["height"], one["width"]) for one in content["sheets"]] == [(16, 16), (16, 16), (8, 24)]
    assert content["cells"][-2:] == [(1, 0), (2, 0)]


def test_the_same_row_of_other_data_is_another_picture() -> None:
    album = Album()
    assert [album.use("a", 0), album.use("b", 0), album.use("a", 0)] == [0, 1, 0]


@pytest.mark.parametrize("room", [60_000, 30_000, 10_000])
def test_pictures_never_take_more_than_their_room(room: int) -> None:
    album = Album(room)
    album.learn(thumbnails(64, 64, 64))
    for row in range(64):
        album.use("data", row)
    assert sum(len(one["uri"]) for one in album.content()["sheets"]) <= room


def test_an_empty_album_has_no_sheets() -> None:
    assert Album().content()["sheets"] == []
