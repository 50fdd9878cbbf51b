"""A run that was never made: an outcome with known numbers and unkind names, and the files of its units."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from impact_lightning.files import write_csv
from impact_lightning.results import Constant, Interval, Null, Record
from impact_lightning.suite.outcome import (
    Effect,
    Entry,
    Model,
    Outcome,
    Planted,
    Unit,
    Verdict,
    write_outcome,
)

EVIL = '<script>alert("1")$x_{$'  # a model; its name is that of folders too, so it has no slash
CLASSES = ["<script>alert(1)</script>", '"quotes"', "größer", "cat & dog"]
TASK = "</script><img src=x onerror=alert(2)>"
NAMES = ["dense", "wanda50", "sparse10", EVIL]
SPARSITY = {"dense": 0.0, "wanda50": 0.5, "sparse10": 0.9, EVIL: math.nan}
TOP1 = {"dense": 0.91, "wanda50": 0.88, "sparse10": 0.85, EVIL: 0.5}
BLOCKS, METHODS, ROWS = 1, ("transformer_attribution", "rise", "random"), (3, 8, 21)
PROTOCOL: dict[str, Constant] = {"steps": 600, "learning": {"lr": 0.003, "kind": "<b>mean</b>"}}


def outcome() -> Outcome:
    """Return the outcome, without any file."""
    return Outcome(
        version="0.1.0",
        title="Rooms <b>&</b> “models”",
        configuration={"title": "Rooms", "models": {name: {"class_path": "Trained"} for name in NAMES}},
        models=[
            Model(name, name, "trained", 0, "dense", SPARSITY[name], f"weights{at}", TOP1[name])
            for at, name in enumerate(NAMES)
        ],
        units=list(units()),
        verdicts=list(verdicts()),
        planted=list(planted()),
        entries=list(entries()),
    )


def units() -> Iterator[Unit]:
    """Yield units: one of each state."""
    for name in NAMES:
        yield Unit(f"{name}/fit", "", [name], "fit", f"units/{name}/fit", "f0", [], "done")
        yield Unit(f"sae/{name}/test", "sae", [name], "test", f"units/sae/{name}", "f1", [f"{name}/fit"], "done")
    for level in ("neurons", "circuits", "attribution"):
        yield Unit(level, level, NAMES, "test", f"units/{level}", "f2", [f"{name}/fit" for name in NAMES], "done")
    yield Unit("more/test", "", [], "test", "units/more", "f3", [], "failed", "it has <b>failed</b> & ended")
    yield Unit("most/test", "", [], "test", "units/most", "f4", [], "skipped", "more/test failed")


def effect(measure: str, judgement: str, **changes: object) -> Effect:
    """Return an effect with known numbers."""
    values = {
        "measure": measure, "of": "", "better": "more", "value": 0.62, "reference": 0.5, "difference": 0.12,
        "low": 0.06, "high": 0.18, "null": 0.0, "how": "in pairs, <permuted>", "effect": 0.24, "margin": 0.1,
        "p": 0.004, "judgement": judgement, **changes,
    }  # fmt: skip
    return Effect(**values)  # type: ignore[arg-type]


def verdicts() -> Iterator[Verdict]:
    """Yield answers of every kind; of the last level and model there is none."""
    ratio = {"better": "less", "difference": 0.25, "low": 0.1, "high": 0.5, "null": 1.0, "effect": math.log(0.25)}
    unknown = {"effect": math.nan, "p": math.nan, "low": math.nan, "high": math.nan}
    easier = [effect("selectivity", "easier", of="neurons"), effect("label_entropy", "same", better="less")]
    made = {
        ("neurons", "wanda50"): ("easier", easier),
        ("neurons", "sparse10"): (
            "harder",
            [effect("selectivity", "harder", difference=-0.12, low=-0.18, high=-0.06, effect=-0.24)],
        ),
        ("neurons", EVIL): ("unsettled", [effect("selectivity", "unsettled", **unknown)]),
        ("sae", "wanda50"): ("same", [effect("purity", "same", of=TASK)]),
        ("sae", "sparse10"): ("mixed", [effect("purity", "easier"), effect("fvu", "harder", better="less")]),
        ("sae", EVIL): ("missing", []),
        ("circuits", "wanda50"): ("unsettled", [effect("nodes", "unsettled", **ratio)]),
        ("circuits", "sparse10"): ("easier", [effect("nodes", "easier", **ratio)]),
        ("attribution", "sparse10"): ("same", [effect("patch_area_between", "same")]),
    }
    for (level, model), (answer, effects) in made.items():
        words = f"{model} is {answer} in {level}."
        yield Verdict(level, model, "dense", answer, words, effects)  # type: ignore[arg-type]  # one of its words


def planted() -> Iterator[Planted]:
    """Yield what is known to be there: one thing found, one not."""
    yield Planted("neurons", "dense", "the hue of <b>objects</b>", "auroc_best", 0.97, 0.5, 0.95, 0.99, True)
    yield Planted("circuits", "sparse10", "nodes of the shape", "overlap", 0.11, 0.1, math.nan, math.nan, False)


def entries() -> Iterator[Entry]:
    """Yield records of every level."""
    for at, name in enumerate(NAMES):
        for measure, value in (("ev", 0.9), ("purity", 0.6), ("dead", 0.2)):
            of = "blocks.1.resid_post/0-BatchTopK-x8-s0"
            yield entry("sae", f"sae/{name}/test", measure, value - 0.1 * at, of)
        for seed in range(2):
            for measure, value in (("nodes", 100.0), ("edges", 1000.0), ("edges_over_density", 1000.0)):
                of = f"{name}/{TASK}/seed {seed}"
                notes = ("passes every check",) if at < 3 else ("no size reaches the target",)
                yield entry("circuits", "circuits", measure, value / (at + 1) + seed, of, notes=notes)
        yield entry("circuits", "circuits", "nodes_geometric_mean", 100.5 / (at + 1), name, n=1)
        yield entry("attribution", "attribution", "rise_insertion_auc", 0.7 - 0.1 * at, f"{name}/rise")
        yield entry("neurons", "neurons", "selectivity", 0.8, f"{name}/neurons")
    yield entry("circuits", "circuits", "nodes_ratio", 0.5, "wanda50 / dense", n=1)
    yield entry("neurons", "neurons", "selectivity", 0.1, "wanda50 - dense/neurons")


def entry(
    level: str, unit: str, measure: str, value: float, of: str, n: int = 40, notes: tuple[str, ...] = ()
) -> Entry:
    """Return a record with a null and an interval."""
    interval = Interval(value - 0.05, value + 0.05, "bootstrap over <images>")
    null = Null(0.4, "labels permuted")
    protocol: dict[str, Constant] = {**PROTOCOL, "task": of}
    return Entry(
        level, unit, Record(measure, 1, value, n, 0, protocol, "w", f"data of {level}", null, interval, of, notes)
    )


# --------------------------------------------------------------------------------------------------------------- files


def write_run(folder: Path) -> Outcome:
    """Write the outcome and the files of its units into a folder."""
    made = outcome()
    write_outcome(folder / "results.json", made)
    for at, name in enumerate(NAMES):
        write_csv(folder / "units/neurons/neurons/models" / name / "classes.csv", class_rows(at))
        write_maps(folder / "units/attribution/attribution" / name, at)
    write_csv(folder / "tables/records 1.csv", [["measure"], ["top1"]])
    plan = {"command": "python -m impact_lightning impact --out '<dir>'", "units": {"neurons": {"seconds": 75.2}}}
    (folder / "plan.json").write_text(json.dumps(plan))
    return made


def class_rows(at: int) -> Iterator[list[object]]:
    """Yield the table of classes of a model: selectivity is 0.5 + 0.1 * class + 0.01 * model, its null 0.5."""
    names = ("ablation_impact", "selectivity", "class_variance", "label_entropy")
    yield ["layer", "class", "images", *names, *(f"{name}_null" for name in names), "own_units"]
    for block in range(BLOCKS):
        for label, name in enumerate(CLASSES):
            values = [0.01 * label, 0.5 + 0.1 * label + 0.01 * at, "" if label == 0 else 1.0 + label, 1.2]
            yield [f"blocks.{block}.neurons", name, 10, *values, 0.001 * label, 0.5, 1.5 + 0.1 * label, 1.3, "0 1"]


def write_maps(folder: Path, at: int) -> None:
    """Write curves, maps and thumbnails of a model: mean insertion rises to 1 - 0.1 * model."""
    folder.mkdir(parents=True)
    curves = {}
    for curve in ("insertion", "deletion"):
        curves[f"fractions/rise/{curve}"] = torch.linspace(0, 1, 5, dtype=torch.float64)
        for place, method in enumerate(METHODS):
            rising = torch.linspace(0, 1 - 0.1 * at, 5) * (1 - 0.2 * place)
            curves[f"{method}/rise/{curve}"] = (rising if curve == "insertion" else rising.flip(0)).repeat(4, 1)
    save_file(curves, folder / "curves.safetensors")
    maps = {f"{row}/{method}": torch.linspace(-1, 1, 16).view(4, 4) for row in ROWS for method in METHODS}
    save_file(maps, folder / "maps.safetensors")
    images = torch.from_numpy(np.full((len(ROWS), 8, 8, 3), 120, np.uint8))
    about = {
        "schema": "1", "data": "d", "split": "test", "labels": [0, 1, 2],
        "names": ["<i>a.png", '"b".png', "ü.png"],
    }  # fmt: skip
    tensors = {"rows": torch.tensor(ROWS, dtype=torch.int64), "images": images}
    save_file(tensors, folder / "thumbnails.safetensors", {"about": json.dumps(about)})
