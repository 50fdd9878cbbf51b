"""Planted truths: what is known to be in rendered scenes, and whether each level has found it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from impact_lightning.data.scenes import SceneData
from impact_lightning.results import Record
from impact_lightning.sae.features import Features, read_features
from impact_lightning.suite.effects import METHOD
from impact_lightning.suite.outcome import Entry, Planted, Unit
from impact_lightning.types import UserError

TOP = 10  # images of a latent that are looked at
SHARED = 0.9  # of them have to show the same value of a factor
DRAWS = 20  # permutations of the images


def planted(
    scenes: Mapping[str, SceneData], entries: Sequence[Entry], units: Sequence[Unit], models: Sequence[str], out: Path
) -> Iterator[Planted]:
    """Yield every planted truth that the levels could find; none of images that are no scenes.

    Args:
        scenes: The scenes that units have read, by their names.
        entries: All records.
        units: All units.
        models: Names of the models.
        out: Folder of the run.
    """
    if not scenes:
        return
    label = " and ".join(name.replace("_", " ") for name in next(iter(scenes.values())).label)
    tables = {level: _table(entries, level) for level in ("neurons", "circuits", "attribution")}
    for model in models:
        yield from _neurons(tables["neurons"], model, label)
        yield from _features(scenes, units, model, out)
        yield from _circuits(tables["circuits"], model)
        yield from _maps(tables["attribution"], model)


def _table(entries: Sequence[Entry], level: str) -> dict[tuple[str, str], Record]:
    return {(one.record.of, one.record.measure): one.record for one in entries if one.level == level}


def _neurons(table: Mapping[tuple[str, str], Record], model: str, label: str) -> Iterator[Planted]:
    """Yield whether units tell the classes apart: the model does, so some of its units have to."""
    if (record := table.get((f"{model}/neurons", "auroc_best"))) is not None:
        yield _from_record("neurons", model, f"the {label} of every scene: units that tell its values apart", record)


def _maps(table: Mapping[tuple[str, str], Record], model: str) -> Iterator[Planted]:
    """Yield whether maps point to the object that makes the class."""
    for measure, what in (
        ("energy_in_mask", "relevance lies on it"),
        ("pointing_game", "the strongest patch is on it"),
    ):
        if (record := table.get((f"{model}/{METHOD}", measure))) is not None:
            yield _from_record("attribution", model, f"the mask of the object that makes the class: {what}", record)


def _from_record(level: str, model: str, known: str, record: Record) -> Planted:
    """Return a planted truth that a record is about: found where chance is below its interval."""
    null = math.nan if record.null is None else record.null.value
    low, high = (math.nan, math.nan) if record.interval is None else (record.interval.low, record.interval.high)
    return Planted(level, model, known, record.measure, record.value, null, low, high, low > null)


def _circuits(table: Mapping[tuple[str, str], Record], model: str) -> Iterator[Planted]:
    """Yield whether the tasks have circuits, and permuted labels none."""
    own = {of: record for (of, name), record in table.items() if name == "switches_of_nonsense_labels"}
    own = {of: record for of, record in own.items() if of.startswith(f"{model}/")}
    if own:
        reached = [_reaches(table, of) for of in own]
        by_chance = [math.isfinite(record.value) for record in own.values()]
        value, null = float(np.mean(reached)), float(np.mean(by_chance))
        known = "classes that the model tells apart: circuits that reach the loss, and none for permuted labels"
        yield Planted("circuits", model, known, "share_of_tasks", value, null, math.nan, math.nan, value > null)


def _reaches(table: Mapping[tuple[str, str], Record], of: str) -> bool:
    """Return whether a circuit reaches its loss better than random circuits of its size."""
    found = table.get((of, "p_sufficient"))
    return found is not None and found.value <= 0.05


# ----------------------------------------------------------------------------------------------------------- features


def _features(scenes: Mapping[str, SceneData], units: Sequence[Unit], model: str, out: Path) -> Iterator[Planted]:
    """Yield how many values of all factors of the scenes have a feature of their own."""
    for unit in units:
        if unit.level != "sae" or unit.name not in scenes or unit.models != [model]:
            continue
        data = scenes[unit.name]
        for path in sorted((out / unit.folder / "features").glob("**/features.safetensors")):
            try:
                features, description = read_features(path.parent)
            except UserError:
                continue  # the report shows the gap
            split = data.split("test")
            grid = data.source.grid
            values = torch.from_numpy(grid.factors_of(split.rows))  # (N, factors)
            value, null, most = recovered(features, values)
            known = f"{_count(values)} values of all factors: those that a feature of {description.name} stands for"
            yield Planted("sae", model, known, "share_of_factor_values", value, null, math.nan, math.nan, value > most)


def _count(values: Tensor) -> int:
    """Return how many values all factors `(N, factors)` take together."""
    return sum(len(factor.unique()) for factor in values.T)


def recovered(features: Features, values: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """Return the share of values of factors that have a latent whose top images show them, and the same by chance.

    Args:
        features: The latents.
        values: The factors of every test image `(N, factors)`.
        seed: Seed of the permutations of images.

    Returns:
        The share, its mean under permutations of the images, and the highest of these.
    """
    generator = np.random.default_rng(seed)
    orders = [np.arange(len(values)), *(generator.permutation(len(values)) for _ in range(DRAWS))]
    top = features.image[:, :TOP]
    top = top[(top >= 0).all(1)]  # latents that fire on that many images
    shares = [_share(top, values[torch.from_numpy(order)]) for order in orders]
    return shares[0], float(np.mean(shares[1:])), max(shares[1:])


def _share(top: Tensor, values: Tensor) -> float:
    """Return the share of values that a latent stands for: at least `SHARED` of its top images `(F, TOP)` show it."""
    found = total = 0
    for factor in values.T:  # (N,)
        kinds = factor.unique()
        shown = factor[top]  # (F, TOP)
        total += len(kinds)
        found += sum(bool(((shown == kind).double().mean(1) >= SHARED).any()) for kind in kinds) if len(top) else 0
    return found / total if total else math.nan
