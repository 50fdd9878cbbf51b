"""The feature browser: what each latent of each dictionary responds to, to search, sort and look at."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from impact_lightning.data.thumbnail_file import read_thumbnails
from impact_lightning.report.inputs import Gaps, done_tests, folders_in, heat_bytes, rounded, text_of, undone
from impact_lightning.report.section import Section, render
from impact_lightning.report.sources import unit_folder
from impact_lightning.report.sprites import Album
from impact_lightning.sae.features import Description, Features, read_features
from impact_lightning.suite.outcome import Outcome

NAME = "features"
KEPT, TOTAL = 400, 3000  # latents of a dictionary, and of all together: a page must stay small enough to open
SHOWN = 8  # images of a latent
LENS, NEIGHBOURS = 5, 8  # classes of the logit lens, and similar latents, of each
MAP_ROOM = 4_000_000  # bytes of all heat maps together
METRICS = {
    "density": "Density",
    "images": "Images it fires on",
    "purity": "Purity",
    "entropy": "Entropy of labels",
    "same_label": "Label monosemanticity",
    "alike": "Monosemanticity",
    "value": "Strongest activation",
}


def section(outcome: Outcome, folder: Path, album: Album | None = None) -> Section:
    """Return the feature browser.

    Args:
        outcome: The run.
        folder: Its folder.
        album: Where pictures go that several viewers share; without one, the section holds its own.
    """
    gaps, own = Gaps(folder, undone(outcome, "sae")), Album()
    seen = own if album is None else album
    places = _places(outcome, folder, gaps)
    dictionaries = []
    for model, place in places:
        with gaps.of(f"Features of {model}"):
            dictionaries.append(_dictionary(model, place, seen, len(places), gaps))
    data = {"metrics": METRICS, "dictionaries": dictionaries}
    if album is None:
        data["pictures"] = own.content()
    html = render("features.html", dictionaries=dictionaries)
    return Section(NAME, "Feature browser", html, data if dictionaries else None, tuple(gaps.notes))


def _places(outcome: Outcome, folder: Path, gaps: Gaps) -> list[tuple[str, Path]]:
    """Return the folders of dictionaries, with their models."""
    found: list[tuple[str, Path]] = []
    for unit in done_tests(outcome, "sae"):
        with gaps.of(f"Features of {', '.join(unit.models)}"):
            top = unit_folder(folder, unit) / "features"
            # a dictionary is called after its site, so its folder lies below that of the site
            below = sorted({path.parent for path in top.rglob("features.safetensors")} | _hollow(top))
            if not below:
                raise ValueError(f"{top} holds no dictionary; run the unit `{unit.name}` again")
            found += [(unit.models[0], path) for path in below]
    return found


def _hollow(top: Path) -> set[Path]:
    """Return folders that have files of features but not the one that counts: they are named as a gap."""
    tables = {path.parent for name in ("features.csv", "thumbnails.safetensors") for path in top.rglob(name)}
    return tables if top.is_dir() else set(folders_in(top))


def _dictionary(model: str, place: Path, album: Album, n: int, gaps: Gaps) -> dict[str, Any]:
    """Return what the page holds of a dictionary, one of `n`."""
    features, description = read_features(place)
    data, shape = description.data, (0, 0)
    with gaps.of(f"Pictures of {model}, {description.name}"):
        album.learn(thumbnails := read_thumbnails(place / "thumbnails.safetensors"))
        # by what is read beside it: activations of the same images may have a fingerprint of their own
        data, shape = thumbnails.data, (thumbnails.images.shape[1], thumbnails.images.shape[2])
    kept, alive = choose(features, min(KEPT, max(1, TOTAL // n)))
    images = features.image[kept, :SHOWN]
    grid, shown = _heat(features, description, kept, shape, MAP_ROOM // n)
    return {
        "model": model,
        "name": description.name,
        "site": description.site,
        "classes": description.class_names,
        "alive": alive,
        "latents": len(features.density),
        "latent": kept,
        "numbers": {metric: [rounded(x) for x in values] for metric, values in _numbers(features, kept).items()},
        "label": features.label[kept].tolist(),
        "lens": features.lens_class[kept, :LENS].tolist(),
        "lens_is_named": bool((features.lens_class < len(description.class_names)).all()),
        "neighbours": _neighbours(features, kept),
        "pictures": [[album.use(data, row) for row in rows if row >= 0] for rows in images.tolist()],
        "grid": grid,
        "mapped": 0 if grid is None else shown.shape[1],  # images of a latent with a map
        "maps": text_of(b"".join(heat_bytes(maps) for maps in shown)),
    }


def choose(features: Features, most: int) -> tuple[list[int], int]:
    """Return the latents of the page by number, and how many are alive.

    Where there are more than have room, those of the highest monosemanticity are kept, by embeddings where they were
    measured, else by labels; the lower number first of two.
    """
    alive = (features.density > 0).nonzero().squeeze(1)
    if len(alive) <= most:
        return alive.tolist(), len(alive)
    score = judged(features)[alive].nan_to_num(-torch.inf)
    best = alive[score.argsort(descending=True, stable=True)[:most]]
    return sorted(best.tolist()), len(alive)


def judged(features: Features) -> Tensor:
    """Return the monosemanticity that decides which latents are kept `(F,)`."""
    return features.same_label if bool(features.alike.isnan().all()) else features.alike


def _numbers(features: Features, kept: list[int]) -> dict[str, list[float]]:
    found = {
        "density": features.density,
        "images": features.class_counts.sum(1).double(),
        "purity": features.purity,
        "entropy": features.entropy,
        "same_label": features.same_label,
        "alike": features.alike,
        "value": features.value[:, 0] if features.value.shape[1] else torch.full_like(features.density, math.nan),
    }
    return {metric: values[kept].tolist() for metric, values in found.items()}


def _neighbours(features: Features, kept: list[int]) -> list[list[tuple[int, float | None]]]:
    others = features.neighbour[kept, :NEIGHBOURS].tolist()
    cosines = features.neighbour_cosine[kept, :NEIGHBOURS].tolist()
    return [
        [(other, rounded(cosine)) for other, cosine in zip(*pair, strict=True) if other >= 0]
        for pair in zip(others, cosines, strict=True)
    ]


def _heat(
    features: Features, description: Description, kept: list[int], shape: tuple[int, int], room: int
) -> tuple[tuple[int, int] | None, NDArray[np.float64]]:
    """Return the grid of patches, none where maps cannot be drawn, and maps `(K, n, P)` of as many images as fit."""
    none = np.zeros((len(kept), 0, 0))
    tokens = np.array(description.tokens, np.int64) - description.n_prefix
    if description.n_prefix < 0 or not (tokens >= 0).any():
        return None, none  # where patches lie is not known, or only tokens before them were kept
    grid = patches(int(tokens.max()) + 1, shape)
    if grid is None:
        return None, none
    n = min(SHOWN, features.map.shape[1], room // max(1, len(kept) * grid[0] * grid[1]))
    values = features.map[kept, :n].double().numpy()  # (K, n, t)
    maps = np.full((*values.shape[:2], grid[0] * grid[1]), math.nan)
    maps[:, :, tokens[tokens >= 0]] = values[:, :, tokens >= 0]
    return (grid if n else None), maps


def patches(n: int, shape: tuple[int, int]) -> tuple[int, int] | None:
    """Return rows and columns of `n` square patches on a picture `(h, w)`; None where they do not tile it.

    Example:
        >>> patches(64, (32, 32)), patches(128, (64, 32)), patches(7, (32, 32))
        ((8, 8), (16, 8), None)
    """
    h, w = shape if min(shape) > 0 else (1, 1)
    rows = round(math.sqrt(n * h / w))
    return (rows, n // rows) if rows and n % rows == 0 and abs(math.log(rows * rows * w / (n * h))) < 0.2 else None
