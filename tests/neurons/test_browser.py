"""The browser shows a fair choice of units, says what is known of them, and is safe whatever the names are."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from impact_lightning.data.images import ImageData
from impact_lightning.data.pictures import RGB
from impact_lightning.data.transforms import Preprocess
from impact_lightning.metrics.auroc import AUROCs
from impact_lightning.metrics.precision_at_k import Precision
from impact_lightning.neurons.browser import choose, data_uris, null_range, shown_classes, view_layers, write_browser
from impact_lightning.neurons.layers import Kind, Layer
from impact_lightning.neurons.measures import PERMUTED, Measure, Measures
from impact_lightning.neurons.settings import Settings
from tests.data.pictures import write_folders

CLASSES = ["cat", "dog", "owl"]
HOSTILE = "</script><script>alert(1)</script>'\"&<!--\u2028 \udcff"
SETTINGS = Settings(k=3, shown=2)


def make_measures(*sizes: int, kinds: tuple[Kind, ...] = ("head", "neuron"), images: int = 6) -> Measures:
    """Return measures of units whose AUROC falls with their number in the layer; each third has its best for a class.

    Every unit is active on half of the images, and most on images 5, 0 and 3.
    """
    layers, units = list[Layer](), 0
    for place, n in enumerate(sizes):
        layers.append(Layer(place // len(kinds), kinds[place % len(kinds)], n, 1, units, units))
        units += n
    best = torch.cat([torch.linspace(0.9, 0.6, n) for n in sizes]).double()
    auroc = best.repeat(3, 1) - 0.3
    preferred = torch.arange(units) % 3
    auroc[preferred, torch.arange(units)] = best
    density = torch.full((units,), 0.5, dtype=torch.float64)
    null = torch.full((units,), 0.52, dtype=torch.float64)
    by_name = {
        "auroc_best": Measure(best, null, PERMUTED),
        "class_selectivity": Measure(best - 0.1, null - 0.4, PERMUTED),
        "precision_at_k": Measure(best - 0.2, null - 0.3, PERMUTED),
        "density": Measure(density),
    }
    return Measures(
        layers=layers,
        n_classes=3,
        by_name=by_name,
        null_units=torch.arange(units),
        preferred=preferred,
        auroc=AUROCs(auroc, torch.full((units,), 0.01).double(), torch.ones(units).long(), torch.full((3,), 2)),
        top=Precision(
            best - 0.2, preferred, null, torch.tensor([[5, 0, 3]]).repeat(units, 1), torch.ones(units, 3) * 2.5
        ),
        own=[torch.full((3, 2), -1) for _ in layers],
        scores=torch.zeros(3, units),
        images=images,
    )


def make_data(root: Path, *names: str, on_error: str = "fail") -> ImageData:
    """Return two test images of each class."""
    for split in ("train", "test"):
        write_folders(root / split, dict.fromkeys(names or CLASSES, 2))
    return ImageData(str(root), preprocess=Preprocess(size=16), on_error=on_error)  # type: ignore[arg-type]


def page_of(measures: dict[str, Measures], data: ImageData, names: list[str] = CLASSES, **more: Any) -> str:
    file = io.BytesIO()
    write_browser(file, measures, data, names, SETTINGS, **more)
    return file.getvalue().decode()


def content_of(page: str) -> Any:
    """Return what the page's script reads; numbers that JSON has not got are errors."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (found,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    return json.loads(found, parse_constant=refuse)


# ------------------------------------------------------------------------------------------------------ which units


def test_units_are_chosen_evenly_the_best_and_one_for_each_class() -> None:
    measures = make_measures(2, 40)
    measures.own[1][0, 0], measures.own[1][2, 0] = 33, 0  # dog has none
    chosen = choose(measures, 1, even=4, best=3)
    assert chosen.even == [5, 15, 25, 35]  # the middles of four parts, not the first of each
    assert chosen.best == [0, 1, 2]
    assert chosen.own == {0: 33, 2: 0}
    assert chosen.all == [0, 1, 2, 5, 15, 25, 33, 35]
    assert choose(measures, 1, classes=[2]).own == {2: 0}
    assert choose(measures, 0).even == choose(measures, 0).best == [0, 1]  # all of a small layer


def test_the_order_is_that_of_auroc_and_not_of_numbers() -> None:
    measures = make_measures(2, 8)
    auroc = measures.by_name["auroc_best"].values
    auroc[2:] = torch.tensor([0.6, 0.9, 0.7, 0.8, 0.55, 0.8, 0.5, 0.51])
    chosen = choose(measures, 1, even=2, best=3)
    assert chosen.best == [1, 3, 5]  # the lower number first of equal ones
    assert chosen.even == [5, 7]


def test_units_without_activity_or_auroc_are_not_chosen() -> None:
    measures = make_measures(2, 8)
    measures.by_name["density"].values[2:5] = 0
    measures.by_name["auroc_best"].values[5] = torch.nan
    assert choose(measures, 1).all == [4, 5, 6, 7]


def test_shown_classes_are_spread_over_all() -> None:
    assert shown_classes(7) == list(range(7))
    many = shown_classes(1000)
    assert len(many) == 20
    assert set(np.diff(many)) == {50}


# ------------------------------------------------------------------------------------------------ what is known of them


def test_a_unit_is_shown_with_its_own_numbers() -> None:
    measures = make_measures(2, 40)
    measures.own[1][0, 0] = measures.own[1][1, 0] = 1
    (heads, neurons) = view_layers({"dense": measures}, shown=2)
    assert (heads.model, heads.block, heads.kind, heads.n_units) == ("dense", 0, "head", 2)
    unit = neurons.units[1]
    assert (unit.number, unit.preferred, unit.own) == (1, 0, [0, 1])  # the third unit of the model
    assert unit.is_best
    auroc = float(measures.by_name["auroc_best"].values[3])
    assert unit.aurocs == [
        (0, pytest.approx(auroc, abs=1e-4)),
        (1, pytest.approx(auroc - 0.3, abs=1e-4)),
        (2, unit.aurocs[1][1]),
    ]
    assert unit.precision == pytest.approx(auroc - 0.2, abs=1e-4)
    assert (unit.certificate, unit.density, unit.images, unit.values) == (0.01, 0.5, [5, 0], [2.5, 2.5])
    assert neurons.mean_auroc == pytest.approx(0.75)
    assert neurons.null_auroc == pytest.approx(0.52)


def test_the_null_is_that_of_units_alike_in_kind_and_density() -> None:
    measures = make_measures(4, 8, 4, 8)
    selectivity, density = measures.by_name["class_selectivity"], measures.by_name["density"].values
    assert selectivity.null is not None
    neurons = torch.tensor([layer.kind == "neuron" for layer in measures.layers for _ in range(layer.n_units)])
    selectivity.null[neurons], selectivity.null[~neurons] = 0.1, 0.9
    rare = torch.tensor([5, 6, 18])  # neurons of both layers
    density[rare], selectivity.null[rare] = 0.01, torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64)
    of_rare = null_range(measures, "class_selectivity", place=1, number=1, alike=3)
    of_usual = null_range(measures, "class_selectivity", place=1, number=0, alike=3)
    assert of_rare is not None
    assert of_usual is not None
    assert of_rare.n == 3
    assert of_rare.mean == pytest.approx(0.6)
    assert of_rare.high == pytest.approx(0.69)
    assert of_usual.mean == of_usual.high == pytest.approx(0.1)
    selectivity.null[neurons] = torch.nan
    assert null_range(measures, "class_selectivity", place=1, number=0) is None


# -------------------------------------------------------------------------------------------------------------- file


def test_the_page_says_what_was_measured_and_holds_each_image_once(tmp_path: Path) -> None:
    measures = make_measures(2, 40)
    page = page_of({"dense": measures, "wanda70": measures}, make_data(tmp_path), title="Units of two models")
    content = content_of(page)
    assert "<h1>Units of two models</h1>" in page
    heading = " ".join(page[page.index("<h1>") : page.index("<details>")].split())
    assert "dense, wanda70 · 6 test images of 3 classes · activation on the class token" in heading
    assert [layer["model"] for layer in content["layers"]] == ["dense", "dense", "wanda70", "wanda70"]
    assert content["images"].keys() == {"0", "5"}  # only two of a unit are shown
    assert [content["images"][row][0] for row in ("0", "5")] == [0, 2]
    assert page.count("data:image/") == 2
    assert not re.search(r"https?://|//[a-z]+\.", page)  # nothing from outside


def test_one_model_of_one_layer(tmp_path: Path) -> None:
    content = content_of(page_of({"dense": make_measures(5, kinds=("neuron",))}, make_data(tmp_path)))
    assert [len(layer["units"]) for layer in content["layers"]] == [5]


def test_a_layer_of_dead_units_is_empty_and_nothing_is_nan(tmp_path: Path) -> None:
    measures = make_measures(2, 8)
    for name in ("auroc_best", "class_selectivity", "precision_at_k"):
        measures.by_name[name].values[2:] = torch.nan
    measures.by_name["density"].values[2:] = 0
    measures.auroc.auroc[:, 2:] = measures.auroc.certificate[2:] = measures.top.precision[2:] = torch.nan
    measures.top.images[2:], measures.top.values[2:] = -1, torch.nan
    measures.preferred[2:] = measures.top.best[2:] = -1
    measures.auroc.auroc[1, 0] = torch.nan  # a class without images
    empty = content_of(page_of({"dense": measures}, data := make_data(tmp_path)))["layers"]
    assert [(len(layer["units"]), layer["n_dead"], layer["mean_auroc"]) for layer in empty][1] == (0, 8, None)
    assert [label for label, _ in empty[0]["units"][0]["aurocs"]] == [0, 2]
    measures.own[1][0, 0] = 4  # dead, but a class's own
    (dead,) = content_of(page_of({"dense": measures}, data))["layers"][1]["units"]
    assert dead["selectivity"] is dead["precision"] is dead["certificate"] is None
    assert (dead["aurocs"], dead["images"], dead["preferred"], dead["own"]) == ([], [], -1, [0])


@pytest.mark.parametrize("on_error", ["skip", "fail"])
def test_an_image_that_cannot_be_read_has_no_picture(tmp_path: Path, on_error: str) -> None:
    data = make_data(tmp_path, on_error=on_error)
    (tmp_path / "test" / "owl" / "1.jpg").write_bytes(b"nothing")
    images = content_of(page_of({"dense": make_measures(2, 4)}, data))["images"]
    assert images["5"] == [2, None]
    assert images["0"][1].startswith("data:image/webp;base64,")


class Tags(HTMLParser):
    """Collects the tags of a page, and what its scripts are."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[dict[str, str | None]] = []
        self.heading, self._in_heading = "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "script":
            self.scripts.append(dict(attrs))
        self._in_heading = tag in ("h1", "title") or (self._in_heading and tag == "p")

    def handle_data(self, data: str) -> None:
        self.heading += data if self._in_heading else ""


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    names = [HOSTILE, "dog", "owl"]
    page = page_of({HOSTILE: make_measures(2, 4)}, make_data(tmp_path), names, title=HOSTILE)
    tags = Tags()
    tags.feed(page)
    assert tags.scripts == [{"type": "application/json", "id": "content"}, {}]  # none was added
    assert tags.heading.count("<script>alert(1)</script>") >= 3  # as text: title, heading, models
    content = content_of(page)
    assert content["classes"] == names  # as they are, also what is no character
    assert content["layers"][0]["model"] == HOSTILE


def test_the_script_never_reads_data_as_html(tmp_path: Path) -> None:
    page = page_of({"dense": make_measures(2, 4)}, make_data(tmp_path))
    script = page[page.rindex("<script>") :]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|DOMParser", script)
    assert "default-src 'none'" in page


def test_pictures_lose_quality_rather_than_fill_the_file() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    pictures: list[RGB | None] = [*noise, None]
    large, small = data_uris(pictures), data_uris(pictures, room=1)
    assert large[-1] is small[-1] is None
    lengths = [sum(len(uri or "") for uri in uris) for uris in (large, small)]
    assert lengths[1] < 0.7 * lengths[0]
    assert data_uris(pictures, room=lengths[0]) == large
    assert data_uris(pictures, room=lengths[0] - 1) != large
