"""The unit browser: one HTML file in which one looks at what neurons and heads respond to."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, BinaryIO, NamedTuple

import torch
from jinja2 import Environment, StrictUndefined
from PIL import Image
from torch import Tensor

from impact_lightning.data.labels import labels_of
from impact_lightning.data.module import ImageDataModule
from impact_lightning.data.pictures import RGB, thumbnails
from impact_lightning.neurons.layers import Kind
from impact_lightning.neurons.measures import Measures
from impact_lightning.neurons.settings import Settings

EVEN, BEST, CLASSES = 16, 8, 20  # units of a layer: evenly spaced, the best, and classes that show their own
TOP_CLASSES = 3  # of each unit, by AUROC
ALIKE = 100  # null units that a unit is compared with
WITH_NULL = {"auroc": "auroc_best", "selectivity": "class_selectivity", "precision": "precision_at_k"}
HEIGHT = 56  # of a thumbnail, in pixels
QUALITIES = (85, 70, 55, 40, 25)  # of the thumbnails: the first at which all of them fit
ROOM = 8_000_000  # characters of all thumbnails together
POOLINGS = {"cls": "on the class token", "patch_max": "largest on patches", "patch_mean": "mean over patches"}


# ------------------------------------------------------------------------------------------------------ which units


class Chosen(NamedTuple):
    """Units of a layer, by their numbers in it; no look at their pictures has part in the choice."""

    even: list[int]  # every m-th of those alive, in the order of their best AUROC
    best: list[int]  # the first of that order
    own: dict[int, int]  # by class: the unit of the largest attribution to its logit

    @property
    def all(self) -> list[int]:
        """All of them, each once, in the order of their numbers."""
        return sorted({*self.even, *self.best, *self.own.values()})


def choose(
    measures: Measures, place: int, even: int = EVEN, best: int = BEST, classes: Sequence[int] | None = None
) -> Chosen:
    """Return units of a layer to look at: a fair sample of all that are alive, the best, and classes' own units.

    Args:
        measures: What is known of the units.
        place: Which layer.
        even: How many that are spread evenly.
        best: How many of the largest AUROC.
        classes: The classes whose strongest own unit is looked at; `shown_classes` by default.
    """
    units = measures.layers[place].of_units
    auroc = measures.by_name["auroc_best"].values[units]
    is_alive = (measures.by_name["density"].values[units] > 0) & ~auroc.isnan()
    ranked = torch.where(is_alive, auroc, -torch.inf).argsort(descending=True, stable=True)
    alive: list[int] = ranked[: int(is_alive.sum())].tolist()
    n = min(even, len(alive))
    fair = [alive[int((part + 0.5) * len(alive) / n)] for part in range(n)]  # the middle of each of n equal parts
    own = measures.own[place][:, :1].tolist()  # (C, 1), without a column where a class has none
    wanted = shown_classes(measures.n_classes) if classes is None else classes
    return Chosen(fair, alive[:best], {c: own[c][0] for c in wanted if own[c] and own[c][0] >= 0})


def shown_classes(n_classes: int, most: int = CLASSES) -> list[int]:
    """Return the classes whose own units are looked at: all, or some spread evenly.

    Example:
        >>> shown_classes(3), shown_classes(1000, most=4)
        ([0, 1, 2], [0, 250, 500, 750])
    """
    n = min(n_classes, most)
    return [place * n_classes // n for place in range(n)]


# ------------------------------------------------------------------------------------------------ what is known of them


@dataclass(frozen=True)
class NullRange:
    """What a measure is of units like this one where labels mean nothing.

    Args:
        mean: Its mean.
        high: What 95 % of the units stay below.
        n: Number of the units.
    """

    mean: float
    high: float
    n: int


@dataclass(frozen=True)
class Unit:
    """What is shown of a unit; None where a number is not defined, -1 where there is no class.

    Args:
        number: Its number in the layer.
        is_even: Whether it is in the evenly spaced sample.
        is_best: Whether it is among the best.
        own: Classes whose strongest own unit it is.
        preferred: The class with the largest mean.
        aurocs: Classes of the largest AUROC, with it.
        certificate: How far an AUROC may be off.
        selectivity: Class selectivity.
        precision: Precision at k.
        precision_class: The class that it is of.
        density: Share of the images on which it is active.
        images: Its strongest images, by row.
        values: Its activations on them.
        nulls: What its measures are where labels mean nothing.
    """

    number: int
    is_even: bool
    is_best: bool
    own: list[int]
    preferred: int
    aurocs: list[tuple[int, float]]
    certificate: float | None
    selectivity: float | None
    precision: float | None
    precision_class: int
    density: float | None
    images: list[int]
    values: list[float | None]
    nulls: dict[str, NullRange | None]


@dataclass(frozen=True)
class LayerView:
    """What is shown of a layer of a model."""

    model: str
    block: int
    kind: Kind
    n_units: int
    n_dead: int
    mean_auroc: float | None  # of all its units
    null_auroc: float | None
    units: list[Unit]


def view_layers(models: Mapping[str, Measures], shown: int) -> list[LayerView]:
    """Return what is shown of each layer of each model, with at most `shown` images of a unit."""
    return [
        view_layer(name, measures, place, choose(measures, place), shown)
        for name, measures in models.items()
        for place in range(len(measures.layers))
    ]


def view_layer(model: str, measures: Measures, place: int, chosen: Chosen, shown: int) -> LayerView:
    """Return what is shown of a layer."""
    layer = measures.layers[place]
    mean, null = measures.mean("auroc_best", [place])
    return LayerView(
        model=model,
        block=layer.block,
        kind=layer.kind,
        n_units=layer.n_units,
        n_dead=int((measures.by_name["density"].values[layer.of_units] == 0).sum()),
        mean_auroc=_number(mean.value),
        null_auroc=None if null is None else _number(null.value),
        units=[view_unit(measures, place, number, chosen, shown) for number in chosen.all],
    )


def view_unit(measures: Measures, place: int, number: int, chosen: Chosen, shown: int) -> Unit:
    """Return what is shown of a unit."""
    unit = measures.layers[place].units + number
    images = [row for row in measures.top.images[unit, :shown].tolist() if row >= 0]
    return Unit(
        number=number,
        is_even=number in chosen.even,
        is_best=number in chosen.best,
        own=[label for label, own in chosen.own.items() if own == number],
        preferred=int(measures.preferred[unit]),
        aurocs=_top_classes(measures.auroc.auroc[:, unit]),
        certificate=_number(measures.auroc.certificate[unit]),
        selectivity=_number(measures.by_name["class_selectivity"].values[unit]),
        precision=_number(measures.top.precision[unit]),
        precision_class=int(measures.top.best[unit]),
        density=_number(measures.by_name["density"].values[unit]),
        images=images,
        values=[_number(value) for value in measures.top.values[unit, : len(images)].tolist()],
        nulls={short: null_range(measures, name, place, number) for short, name in WITH_NULL.items()},
    )


def null_range(measures: Measures, name: str, place: int, number: int, alike: int = ALIKE) -> NullRange | None:
    """Return how a measure spreads over units like one of a layer where labels mean nothing; None without any.

    Units are alike that are of the same kind and of similar density: a unit that is rarely active has a larger
    selectivity by chance.
    """
    measure, layer = measures.by_name[name], measures.layers[place]
    if measure.null is None or measure.null.ndim == 0:
        raise ValueError(f"{name} has no null of units")
    density = measures.by_name["density"].values
    is_kind = torch.zeros(len(density), dtype=torch.bool)
    for other in measures.layers:
        is_kind[other.of_units] = other.kind == layer.kind
    among = is_kind[measures.null_units] & ~measure.null.isnan()
    rarity = (density + 1 / measures.images).log()  # dead units have one too
    distance = (rarity[measures.null_units[among]] - rarity[layer.units + number]).abs()
    values = measure.null[among][distance.argsort(stable=True)[:alike]]
    if not len(values):
        return None
    return NullRange(_rounded(values.mean()), _rounded(values.quantile(0.95)), len(values))


def _top_classes(auroc: Tensor) -> list[tuple[int, float]]:
    """Return the classes with the largest AUROC `(C,)`, with it; the lower class first of two, undefined ones never."""
    order = auroc.nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:TOP_CLASSES].tolist()
    return [(label, _rounded(auroc[label])) for label in order if not auroc[label].isnan()]


def _number(value: float | Tensor) -> float | None:
    """Return a rounded number; None for nan and infinity, which JSON has not got."""
    return _rounded(value) if math.isfinite(value) else None


def _rounded(value: float | Tensor) -> float:
    """Return a number with five digits."""
    return float(f"{float(value):.5g}")


# --------------------------------------------------------------------------------------------------------- pictures


def data_uris(pictures: Iterable[RGB | None], room: int = ROOM) -> list[str | None]:
    """Return pictures as data URIs, of the best quality at which all of them have room; None stays None."""
    shown = list(pictures)
    uris: list[str | None] = []
    for quality in QUALITIES:
        uris = [None if picture is None else _data_uri(picture, quality) for picture in shown]
        if sum(len(uri) for uri in uris if uri is not None) <= room:
            break
    return uris


def _data_uri(picture: RGB, quality: int) -> str:
    """Return a picture as WebP: at this size the header of a JPEG is as long as the picture."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=quality)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _size(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return height and width of a thumbnail of images `(c, h, w)`; small images stay as they are."""
    _, h, w = shape
    height = min(h, HEIGHT)
    return height, max(1, min(round(height * w / h), 3 * height))


# -------------------------------------------------------------------------------------------------------------- file


def write_browser(
    file: BinaryIO,
    measures: Mapping[str, Measures],
    data: ImageDataModule,
    class_names: Sequence[str],
    settings: Settings,
    title: str = "What neurons and heads respond to",
) -> None:
    """Write the browser of the units of some models: one file that needs nothing else.

    Args:
        file: Where it goes.
        measures: What is known of the units of each model, by name; of the same images.
        data: The images, whose split `test` was measured.
        class_names: Names of the classes.
        settings: How it was measured, and how many images of a unit are shown.
        title: The heading.
    """
    layers = view_layers(measures, settings.shown)
    rows = sorted({row for layer in layers for unit in layer.units for row in unit.images})
    content = {
        "classes": list(class_names),
        "layers": [asdict(layer) for layer in layers],
        "images": _images(data, rows),
    }
    text = _template().render(
        title=title,
        content=content,
        models=list(measures),
        n_images=sorted({known.images for known in measures.values()}),
        n_classes=len(class_names),
        own_classes=len(shown_classes(len(class_names))),
        even=EVEN,
        best=BEST,
        k=settings.k,
        shown=settings.shown,
        pooling=POOLINGS[settings.pooling],
        alike=ALIKE,
    )
    file.write(text.encode("utf-8", "replace"))  # names of files may hold what is no character


def _images(data: ImageDataModule, rows: Sequence[int]) -> dict[int, tuple[int, str | None]]:
    """Return the label and the picture of each row; no picture where the image cannot be read."""
    pictures, labels = thumbnails(data, rows, _size(data.image_shape)), labels_of(data, "test")
    uris = data_uris(pictures.get(row) for row in rows)
    return {row: (int(labels[row]), uri) for row, uri in zip(rows, uris, strict=True)}


def _template() -> Any:
    """Return the page; everything that is put into it is escaped, and a nan in its numbers is an error."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.from_string(files(__package__).joinpath("browser.html.jinja").read_text("utf-8"))
