"""Maps colour grey pictures; pictures can be drawn of any names and of nothing."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from impact_lightning.attribution.lit_attribution import METHODS
from impact_lightning.attribution.pictures import draw_curves, draw_gallery, overlay
from impact_lightning.attribution.study import CurveKey, Example

NAMES = ["<script>alert(1)</script>", "a very long name of a class indeed, of which there are some", "$x_1$ {0} %s"]


def test_an_overlay_is_a_mixture_of_grey_and_colour() -> None:
    picture = np.full((2, 4, 3), 255, np.uint8)
    picture[1] = (255, 0, 0)
    maps = np.array([[0.0, 2.0], [-1.0, -4.0]], np.float32)
    found = overlay(picture, maps)
    white, dark = np.ones(3), np.full(3, 0.6 / 3 + 0.4)
    red, blue = np.array([0.80, 0.20, 0.05]), np.array([0.10, 0.35, 0.80])
    wanted = [
        [white, white, 0.625 * white + 0.375 * red, 0.625 * white + 0.375 * red],
        [0.8125 * dark + 0.1875 * blue] * 2 + [0.25 * dark + 0.75 * blue] * 2,
    ]
    np.testing.assert_allclose(found, np.array(wanted), rtol=1e-6)


def test_a_map_of_zeros_has_no_colour() -> None:
    found = overlay(np.full((4, 4, 3), 100, np.uint8), np.zeros((2, 2), np.float32))
    np.testing.assert_allclose(found, 100 / 255 * 0.6 + 0.4, rtol=1e-6)


def test_patches_that_do_not_divide_a_picture_are_coloured() -> None:
    assert overlay(np.zeros((5, 7, 3), np.uint8), np.ones((2, 3), np.float32)).shape == (5, 7, 3)


def example(row: int, methods: list[str]) -> Example:
    generator = torch.Generator().manual_seed(row)
    return Example(row, row % 3, 2 * row % 3, 0.5, {name: torch.randn(4, 4, generator=generator) for name in methods})


def picture_of(draw: Any, *args: Any) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Return the pixels of a picture and its titles."""
    file, drawn = io.BytesIO(), list[Figure]()
    savefig = Figure.savefig

    def keep(figure: Figure, *args: Any, **settings: Any) -> None:
        drawn.append(figure)
        savefig(figure, *args, **settings)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", keep)
        draw(file, *args)
    titles = [title for axis in drawn[0].axes for at in ("center", "left") if (title := axis.get_title(loc=at))]
    return np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB")), titles


def test_a_gallery_names_methods_once_and_classes_of_every_image() -> None:
    methods, rows = ["grad_cam", "$rise$"], [0, 1, 2]
    pixels = {row: np.full((32, 32, 3), 60 * row, np.uint8) for row in rows}
    shown, titles = picture_of(draw_gallery, "dense", [example(row, methods) for row in rows], pixels, NAMES)
    assert shown.std() > 10
    assert sorted(titles) == sorted(
        [
            *("grad cam", "$rise$", "<script>alert(1… 50%"),
            *("$x_1$ {0} %s 50%\nis a very long name …", "a very long nam… 50%\nis $x_1$ {0} %s"),
        ]
    )


def test_images_that_cannot_be_read_again_are_left_out() -> None:
    _, titles = picture_of(draw_gallery, "dense", [example(0, ["rise"])], {}, NAMES)
    assert titles == []


def curves_of(methods: list[str], n: int = 3) -> tuple[dict[CurveKey, torch.Tensor], dict[CurveKey, torch.Tensor]]:
    kinds = [("patch", "morf"), ("patch", "random"), ("rise", "deletion"), ("groups", "groups")]
    keys = [(method, protocol, curve) for method in methods for protocol, curve in kinds]
    return {key: torch.rand(n, 5) for key in keys}, {key: torch.linspace(0, 1, 5) for key in keys}


def test_curves_have_a_field_each_and_methods_look_different() -> None:
    drawn, seen = list[Figure](), set[tuple[Any, ...]]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
        draw_curves(io.BytesIO(), "dense", *curves_of([*METHODS, "$own$", *(f"m{i}" for i in range(5))]))
    axes = [axis for axis in drawn[0].axes if axis.get_title()]
    assert [axis.get_title() for axis in axes] == ["patch: morf", "rise: deletion"]
    for line in axes[0].get_lines():
        seen.add((line.get_color(), line.get_linestyle()))
    assert len(seen) == len(METHODS) + 6
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["transformer attribution", "gradient attention"]
    assert len(legend.get_texts()) == len(seen)


def test_a_curve_is_the_mean_of_images() -> None:
    curves, fractions = curves_of(["rise"])
    drawn = list[Figure]()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
        draw_curves(io.BytesIO(), "dense", curves, fractions)
    (line,) = drawn[0].axes[0].get_lines()
    np.testing.assert_allclose(np.asarray(line.get_xdata()), [0, 25, 50, 75, 100])
    np.testing.assert_allclose(np.asarray(line.get_ydata()), curves["rise", "patch", "morf"].mean(0).numpy())


@pytest.mark.parametrize("n", [0, 1])
def test_curves_of_few_images_are_drawn(n: int) -> None:
    shown, _ = picture_of(draw_curves, "dense", *curves_of(["$rise$", "_x"], n))
    assert shown.std() > 1
    curves = {("rise", "groups", "groups"): torch.rand(n, 5)}
    picture_of(draw_curves, "dense", curves, {})
