"""Class pages: what the report knows of each class, in one place."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from impact_lightning.data.thumbnail_file import read_thumbnails
from impact_lightning.report.inputs import Gaps, done_tests, heat_bytes, rounded, text_of, undone
from impact_lightning.report.section import Section, render
from impact_lightning.report.sources import Row, read_rows, read_tensors, unit_folder
from impact_lightning.report.sprites import Album
from impact_lightning.sae.features import read_features
from impact_lightning.suite.outcome import Outcome, Unit

NAME = "classes"
UNITS, ALL_UNITS = 8, 20_000  # of a class and model, and of all together
TOPS = 5  # images of a unit
EXAMPLES = 12  # images of a class
MAPPED = 3  # of them with attribution maps
MAP_ROOM = 2_000_000  # bytes of all attribution maps together
ACCURACIES = ("top1", "accuracy", "recall")  # measures that say how well a model knows a class


def section(outcome: Outcome, folder: Path, album: Album | None = None) -> Section:
    """Return the class pages.

    Args:
        outcome: The run.
        folder: Its folder.
        album: Where pictures went that other viewers show; this section comes last, and holds them all.
    """
    gaps = Gaps(folder, [*undone(outcome, "neurons"), *undone(outcome, "attribution")])
    seen = Album() if album is None else album
    units = _Units(outcome, folder, seen, gaps)
    names = class_names(outcome, folder, list(dict.fromkeys(name for of in units.rows.values() for name in of)))
    maps = _Maps(outcome, folder, seen, gaps)
    data: dict[str, Any] = {
        "names": names,
        "models": [model.name for model in outcome.models],
        "accuracy": _accuracy(outcome, names),
        "units": units.best(names),
        "examples": examples(seen, len(names)),
        **maps.content(),
        "pictures": seen.content(),
    }
    html = render("classes.html", names=names)
    return Section(NAME, "Classes", html, data, tuple(gaps.notes))


# ---------------------------------------------------------------------------------------------------------- the names


def class_names(outcome: Outcome, folder: Path, otherwise: list[str]) -> list[str]:
    """Return what classes are called, in the order of labels: as dictionaries or tables of neurons say."""
    for names in (*_names_of_features(outcome, folder), *_names_of_neurons(outcome, folder)):
        if names:
            return names
    return otherwise


def _names_of_features(outcome: Outcome, folder: Path) -> Iterator[list[str]]:
    for unit in done_tests(outcome, "sae"):
        with Gaps(folder).of("features"):  # another section tells of it
            for path in sorted((unit_folder(folder, unit) / "features").rglob("features.safetensors")):
                yield read_features(path.parent)[1].class_names


def _names_of_neurons(outcome: Outcome, folder: Path) -> Iterator[list[str]]:
    for unit in done_tests(outcome, "neurons"):
        for model in unit.models:
            with Gaps(folder).of("classes"):
                yield list(dict.fromkeys(row["class"] for row in _neurons(folder, unit, model, "classes")))


# -------------------------------------------------------------------------------------------------------- the numbers


def _accuracy(outcome: Outcome, names: list[str]) -> dict[str, dict[int, float | None]]:
    """Return the accuracy of each model on each class, as far as the run has measured it."""
    models = {unit.name: unit.models for unit in outcome.units}
    label = {name: i for i, name in enumerate(names)}
    found: dict[str, dict[int, float | None]] = defaultdict(dict)
    for entry in outcome.entries:
        own = models.get(entry.unit, [])
        if entry.record.measure in ACCURACIES and entry.record.of in label and len(own) == 1:
            found[own[0]][label[entry.record.of]] = rounded(entry.record.value)
    return dict(found)


class _Units:
    """The units of every model, and their strongest images."""

    def __init__(self, outcome: Outcome, folder: Path, album: Album, gaps: Gaps) -> None:
        self.album = album
        self.gaps = gaps
        self.rows: dict[str, dict[str, list[Row]]] = {}  # of the table of units, by model and class
        self.images: dict[str, dict[tuple[str, int], list[int]]] = {}  # by model, layer and number
        self.data = ""
        for unit in done_tests(outcome, "neurons"):
            with gaps.of("Pictures of neurons"):
                album.learn(known := read_thumbnails(unit_folder(folder, unit) / "neurons" / "thumbnails.safetensors"))
                self.data = known.data
            for model in unit.models:
                with gaps.of(f"Neurons of {model}"):
                    self.rows[model] = by_class(_neurons(folder, unit, model, "units"))
                with gaps.of(f"Top images of neurons of {model}, units.safetensors"):
                    place = unit_folder(folder, unit) / "neurons" / "models" / model
                    self.images[model] = top_images(place / "units.safetensors")

    def best(self, names: list[str]) -> dict[str, dict[int, list[list[Any]]]]:
        """Return the units that tell each class best from the others.

        Of each: its layer, its number, its AUROC, selectivity and density, the class it prefers, and its images.
        """
        most = min(UNITS, max(1, ALL_UNITS // max(1, len(self.rows) * len(names))))
        label = {name: i for i, name in enumerate(names)}
        found: dict[str, dict[int, list[list[Any]]]] = {}
        for model, of in self.rows.items():
            with self.gaps.of(f"Neurons of {model}, units.csv"):
                ranked = {
                    label[name]: sorted(rows, key=lambda row: _number(row["auroc_best"] or "-1"), reverse=True)[:most]
                    for name, rows in of.items()
                    if name in label
                }
                found[model] = {i: [self._unit(model, row) for row in rows] for i, rows in ranked.items()}
        return found

    def _unit(self, model: str, row: Row) -> list[Any]:
        numbers = [rounded(_number(row.get(name, ""))) for name in ("auroc_best", "class_selectivity", "density")]
        images = self.images.get(model, {}).get((row["layer"], int(row["unit"])), [])
        pictures = [self.album.use(self.data, image) for image in images if (self.data, image) in self.album.known]
        return [row["layer"], int(row["unit"]), *numbers, row["preferred_class"], pictures]


def by_class(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of units by the class that each tells best from the others."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["auroc_class"]:
            found[row["auroc_class"]].append(row)
    return dict(found)


def top_images(path: Path) -> dict[tuple[str, int], list[int]]:
    """Return the strongest images of each unit by layer and number."""
    with safetensors.safe_open(path, "pt") as file:
        about = file.metadata()
        images = file.get_tensor("top_images")[:, :TOPS].tolist()
    layers, starts = json.loads(about["layers"]), json.loads(about["first_units"])
    ends = [*starts[1:], len(images)]
    return {
        (layer, unit - start): [image for image in images[unit] if image >= 0]
        for layer, start, end in zip(layers, starts, ends, strict=True)
        for unit in range(start, end)
    }


def _number(cell: str | None) -> float:
    return float(cell) if cell else math.nan


def _neurons(folder: Path, unit: Unit, model: str, name: str) -> list[Row]:
    return read_rows(unit_folder(folder, unit) / "neurons" / "models" / model / f"{name}.csv", folder)


# ------------------------------------------------------------------------------------------------------- the pictures


def examples(album: Album, n_classes: int) -> dict[int, list[int]]:
    """Return images of each class among the pictures at hand: every m-th of them."""
    rows: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for key, known in sorted(album.known.items()):
        if 0 <= known.label < n_classes:
            rows[known.label].append(key)
    most = min(EXAMPLES, max(2, 2000 // max(1, n_classes)))
    return {label: [album.use(*key) for key in spread(keys, most)] for label, keys in sorted(rows.items())}


def spread(keys: list[tuple[str, int]], most: int) -> list[tuple[str, int]]:
    """Return at most `most` of the keys, spread evenly."""
    n = min(most, len(keys))
    return [keys[int((place + 0.5) * len(keys) / n)] for place in range(n)]


class _Maps:
    """The attribution maps of some images of each class, by every method and model."""

    def __init__(self, outcome: Outcome, folder: Path, album: Album, gaps: Gaps) -> None:
        self.album = album
        self.folder = folder
        self.methods: dict[str, int] = {}
        self.bytes = bytearray()
        self.of: dict[int, list[list[Any]]] = defaultdict(list)
        for unit in done_tests(outcome, "attribution"):
            for model in unit.models:
                with gaps.of(f"Attribution maps of {model}"):
                    self._read(unit_folder(folder, unit) / "attribution" / model, model)

    def content(self) -> dict[str, Any]:
        """Return them for the page."""
        return {"methods": list(self.methods), "maps": self.of, "map_bytes": text_of(self.bytes)}

    def _read(self, place: Path, model: str) -> None:
        thumbnails = read_thumbnails(place / "thumbnails.safetensors")
        self.album.learn(thumbnails)
        label = dict(zip(thumbnails.rows.tolist(), thumbnails.labels, strict=True))
        by_row: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, values in sorted(read_tensors(place / "maps.safetensors", self.folder).items()):
            if "/" in key:  # the file of no maps holds one tensor, `none`
                row, method = key.split("/", 1)
                by_row[int(row)][method] = values
        seen: dict[int, int] = defaultdict(int)
        for number, maps in sorted(by_row.items()):
            seen[label.get(number, -1)] += 1
            if number in label and seen[label[number]] <= MAPPED:
                for method, values in maps.items():
                    self._add(model, label[number], self.album.use(thumbnails.data, number), method, values)

    def _add(self, model: str, label: int, picture: int, method: str, values: Tensor) -> None:
        if len(self.bytes) + values.numel() > MAP_ROOM:
            return
        place = self.methods.setdefault(method, len(self.methods))
        self.of[label].append([picture, model, place, len(self.bytes), *values.shape])
        self.bytes += heat_bytes(values.double().numpy().reshape(1, -1))
