"""The gallery draws what is there, where it is, and says what it is; whatever the names are."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from impact_lightning.activations import Tokens
from impact_lightning.activations.frozen import FrozenBackbone
from impact_lightning.data.images import ImageData
from impact_lightning.data.module import normalise
from impact_lightning.data.pictures import pixels, thumbnails
from impact_lightning.data.scenes import SceneData
from impact_lightning.data.sprites import Sprites
from impact_lightning.data.transforms import Preprocess
from impact_lightning.sae.density_picture import draw_densities
from impact_lightning.sae.features import Description, Features
from impact_lightning.sae.gallery import (
    MARGIN,
    WIDTH,
    Gallery,
    caption,
    choose,
    heat,
    on_grid,
    percent,
    plain,
)
from impact_lightning.types import Key
from tests.activations.tiny import SITES, make_backbone, make_data
from tests.data.pictures import write_folders

HOSTILE = "$\\frac{x^$\n\ud800\x1b[31m 犬 <b>" + "long" * 20


def make_features(density: list[float], *, n_tokens: int = 5, **changes: Any) -> Features:
    """Return features of latents that fire on images 0, 1 and 2, of 9."""
    n = len(density)
    image = torch.tensor([0, 1, 2, -1]).repeat(n, 1)
    nan = torch.full((n,), torch.nan, dtype=torch.float64)
    features = Features(
        density=torch.tensor(density, dtype=torch.float64),
        value=torch.tensor([3.0, 2.0, 1.0, torch.nan], dtype=torch.float64).repeat(n, 1),
        image=image,
        token=image,
        map=torch.arange(4 * n_tokens).view(1, 4, n_tokens).repeat(n, 1, 1).half(),
        active=torch.tensor([40, 5, 0]),
        class_counts=torch.ones(n, 3, dtype=torch.int64),
        class_images=torch.full((3,), 3),
        purity=nan + 0,
        entropy=nan + 0,
        label=torch.full((n,), -1),
        same_label=nan + 0,
        alike=nan + 0,
        neighbour=torch.zeros(n, 1, dtype=torch.int64),
        neighbour_cosine=torch.zeros(n, 1),
        lens_class=torch.zeros(n, 1, dtype=torch.int64),
        lens_logit=torch.zeros(n, 1),
    )
    return features._replace(**changes)


def make_description(name: str = "site/0-TopK", *class_names: str) -> Description:
    return Description(name, "site", None, list(class_names or ("cat", "dog", "owl")), [], 1, "", "", {})


def make_gallery(folder: Path, features: Features, tokens: Tokens, name: str = "site/0-TopK") -> Gallery:
    frozen = FrozenBackbone(make_backbone(folder), SITES, tokens, "32-true")
    return Gallery(features, make_description(name), make_data(), frozen)


# ---------------------------------------------------------------------------------------------------- which latents


def test_a_sheet_shows_every_part_of_the_densities_and_the_most_selective_of_the_others() -> None:
    density = torch.linspace(0, 0.5, 101, dtype=torch.float64)  # latent 0 is dead, the rest fire ever more often
    same_label = torch.linspace(1, 0, 101, dtype=torch.float64)
    purity = torch.where(torch.arange(101) < 10, torch.nan, 0.5)  # the rare ones fire on too few images to judge
    chosen = choose(make_features(density.tolist(), same_label=same_label, purity=purity), 4, 3)
    assert chosen.spread == [88, 63, 38, 13]
    assert chosen.selective == [10, 11, 12]
    with_thirteen_judged = choose(make_features(density.tolist(), same_label=same_label, purity=purity), 4, 5)
    assert with_thirteen_judged.selective == [10, 11, 12, 14, 15]  # 13 is shown already


def test_a_sheet_shows_no_more_than_there_is() -> None:
    assert choose(make_features([0.0, 0.1, 0.2])) == ([2, 1], [])
    assert choose(make_features([0.0, 0.0])) == ([], [])


# ------------------------------------------------------------------------------------------------------------ words


def test_names_become_one_short_line() -> None:
    assert plain("cat") == "cat"
    assert plain("a\nb\tc") == "a b c"
    assert plain("a\ud800b\x1b") == "a�b�"
    assert plain("abcdefghij", 5) == "ab…ij"
    assert len(plain(HOSTILE)) == 32


@pytest.mark.parametrize(
    ("share", "shown"), [(1.0, "100 %"), (0.123, "12 %"), (0.0, "0 %"), (1e-6, "0.0001 %"), (0.0999, "10 %")]
)
def test_a_share_is_shown_with_two_digits(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_a_caption_says_what_is_known() -> None:
    features = make_features([0.25])
    assert caption(features, ["cat"], 0) == ("latent 0  ·  fires on 3 images", "density 25 %")
    known: dict[str, Any] = {
        "purity": torch.tensor([0.75]),
        "label": torch.tensor([1]),
        "same_label": torch.tensor([0.5]),
    }
    features = make_features([0.25], **known, alike=torch.tensor([0.125]))
    assert caption(features, ["cat", "dog"], 0) == (
        "latent 0  ·  dog 75 %",
        "density 25 %  ·  label MS 0.50  ·  MS 0.12",
    )


# ---------------------------------------------------------------------------------------------------------- pictures


def test_values_lie_on_the_patches_of_their_tokens() -> None:
    values = np.array([[9.0, 1.0, 2.0, 3.0], [5.0, 6.0, 7.0, 8.0]])
    tokens = np.array([[0, 1, 3, 6], [1, 2, 3, 4]])
    maps = on_grid(values, tokens, 1, (2, 3))
    nan = math.nan
    np.testing.assert_equal(maps, [[[1, nan, 2], [nan, nan, 3]], [[5, 6, 7], [8, nan, nan]]])


def test_heat_is_brightest_where_a_latent_fires_most_and_pale_where_nothing_was_measured() -> None:
    picture = np.full((12, 8, 3), 100, np.uint8)
    shown = heat(picture, np.array([[0.0, 0.25], [0.5, 1.0], [np.nan, 0.0]])).astype(float)
    patches = shown.reshape(3, 4, 2, 4, 3)  # (h, ., w, ., 3)
    assert (patches == patches[:, :1, :, :1]).all()  # squares, not clouds
    bright = patches[:, 0, :, 0].mean(-1)
    assert bright[0, 0] == bright[2, 1] < bright[0, 1] < bright[1, 0] < bright[1, 1]
    assert bright[2, 0] > 200


def test_bytes_and_normalised_floats_show_the_same_and_grey_has_three_channels() -> None:
    images = make_data().split("test").__getitems__([Key(0, 0), Key(0, 1)]).batch.images
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    as_bytes, as_floats = (pixels(part, mean, std) for part in (images, normalise(images, mean, std)))
    np.testing.assert_array_equal(as_bytes, as_floats)
    np.testing.assert_array_equal(as_bytes, images.permute(0, 2, 3, 1))
    grey = SceneData(Sprites(), ["shape"], n_train=9, n_val=9, n_test=9)
    found = thumbnails(grey, [3], (5, 7))
    assert found[3].shape == (5, 7, 3)


def test_only_wanted_images_are_read_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = make_gallery(tmp_path, make_features([0.1, 0.2]), Tokens())
    read: list[int] = []
    split = gallery.data.split("test")
    original = type(split).__getitems__

    def watched(self: Any, keys: list[Key]) -> Any:
        read.extend(key.row for key in keys)
        return original(self, keys)

    monkeypatch.setattr(type(split), "__getitems__", watched)
    gallery.read([0, 1])
    gallery.read([1])
    assert read == [0, 1, 2]


@pytest.mark.parametrize("on_error", ["skip", "fail"])
def test_a_damaged_image_leaves_its_place_empty(tmp_path: Path, on_error: str) -> None:
    root = write_folders(tmp_path / "images" / "test", {"cat": 2, "dog": 1}).parent
    write_folders(root / "train", {"cat": 2, "dog": 2})
    (root / "test" / "cat" / "1.jpg").write_bytes(b"nothing")
    data = ImageData(str(root), preprocess=Preprocess(size=16), on_error=on_error)  # type: ignore[arg-type]
    frozen = FrozenBackbone(make_backbone(tmp_path), SITES, Tokens(), "32-true")
    gallery = Gallery(make_features([0.1]), make_description(), data, frozen)
    gallery.read([0])
    w = gallery.cell[1]
    strip = gallery.strip(0)
    is_blank = [bool((strip[:, x : x + w] == 255).all()) for x in range(0, strip.shape[1], w + 4)]
    assert is_blank == [False, True, False, True]  # the last place is free
    assert gallery.missing == {1}


def test_a_strip_has_maps_of_its_patches_and_the_caption_the_rest(tmp_path: Path) -> None:
    gallery = make_gallery(tmp_path, make_features([0.1]), Tokens())  # values 0 to 4, 5 to 9, ... of 20
    maps, share = gallery.maps(0)
    np.testing.assert_allclose(maps[1] * 19, [[6, 7], [8, 9]])
    assert share == pytest.approx((0 + 5 + 10 + 15) / sum(range(20)))
    assert gallery.caption(0)[1] == "density 10 %  ·  CLS 16 %"
    gallery.read([0])
    h, w = gallery.cell
    strip = gallery.strip(0)
    assert strip.shape == (2 * h + 4, 4 * w + 12, 3)
    np.testing.assert_array_equal(strip[h + 4 :, w + 4 : 2 * w + 4], heat(gallery.pictures[1], maps[1]))


@pytest.mark.parametrize(
    ("tokens", "kept", "rows", "said"),
    [
        (Tokens("cls"), 1, 1, ""),
        (Tokens("patches"), 4, 2, ""),
        (Tokens("random", n=3, seed=1), 3, 2, "CLS"),
    ],
)
def test_every_choice_of_tokens_is_drawn_where_it_lies(
    tmp_path: Path, tokens: Tokens, kept: int, rows: int, said: str
) -> None:
    gallery = make_gallery(tmp_path, make_features([0.1], n_tokens=kept), tokens)
    maps, _ = gallery.maps(0)
    places = tokens.of(np.array([0, 1, 2, -1]), gallery.frozen.sequence)
    for image in range(3):
        patches = {place - 1 for place in places[image].tolist()} - {-1}
        assert set(np.flatnonzero(~np.isnan(maps[image])).tolist()) == patches
    gallery.read([0])
    assert len(gallery.strip(0)) == rows * (gallery.cell[0] + 4) - 4
    assert ("CLS" in gallery.caption(0)[1]) == bool(said)


# ----------------------------------------------------------------------------------------------------------- figures


def test_a_sheet_of_hostile_names_is_drawn(tmp_path: Path) -> None:
    label: dict[str, Any] = {"purity": torch.tensor([0.75, 0.5, 0.5]), "label": torch.tensor([0, 1, 0])}
    features = make_features([0.1, 0.2, 0.0], **label, same_label=torch.tensor([0.1, 0.2, 0.3]))
    gallery = make_gallery(tmp_path, features, Tokens(), name=HOSTILE)
    gallery.description = make_description(HOSTILE, HOSTILE, "$a$")
    file, figure = io.BytesIO(), io.BytesIO()
    gallery.draw(file, choose(features))
    picture = np.asarray(Image.open(file).convert("RGB"))
    assert picture.shape[1] == WIDTH
    for edge in (picture[:20], picture[-20:], picture[:, : MARGIN - 4], picture[:, 4 - MARGIN :]):
        assert (edge == 255).all()  # nothing runs over the margin
    draw_densities(figure, features, HOSTILE)
    assert figure.getvalue().startswith(b"<?xml")


def test_strips_are_drawn_pixel_by_pixel(tmp_path: Path) -> None:
    gallery = make_gallery(tmp_path, make_features([0.1]), Tokens())
    file = io.BytesIO()
    gallery.draw(file, choose(gallery.features))
    picture, strip = np.asarray(Image.open(file).convert("RGB")), gallery.strip(0)
    column = picture[:, MARGIN : MARGIN + strip.shape[1]]
    assert any(np.array_equal(column[y : y + len(strip)], strip) for y in range(len(picture) - len(strip)))


def test_the_density_figure_says_how_many_are_dead_in_how_many_tokens() -> None:
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        draw_densities(file, make_features([0.1, 0.2, 0.0]), "site/0-TopK")
    text = files[0].getvalue().decode()
    assert "1 of 3 latents (33 %) are dead: they fire on none of 45 tokens" in text
    assert "mean 0.11" in text  # 5 of 45 tokens have one
    assert "site/0-TopK" in text
    assert text == files[1].getvalue().decode()


def test_a_style_of_the_user_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    files = [io.BytesIO(), io.BytesIO()]
    draw_densities(files[0], make_features([0.1, 0.0]), "$x$")
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "black")
    draw_densities(files[1], make_features([0.1, 0.0]), "$x$")
    assert files[0].getvalue() == files[1].getvalue()
