"""Levels: which units of work answer the question at each of the four."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from impact_lightning.suite.sources import CLASSIFIER, Config, Shared, fill
from impact_lightning.suite.work import Work, merged
from impact_lightning.types import UserError

Models = Mapping[str, Config]  # backbones with weights by name; all are compared with the first


@dataclass(frozen=True)
class Level:
    """Options of a level.

    Args:
        model: Options of its module: LitNeurons, LitSAE, LitCircuit or LitAttribution.
        data: Options of what it reads: LiveActivations of dictionaries, TaskData of circuits.
        images: Changes to the options of the images.
        trainer: Options of its trainers.
        apart: Measure each model beside the reference in a unit of its own: more units that can run side by side, and
            the reference is measured again in each.
        seeds: Seeds of dictionaries; each is a unit of its own. Circuits have theirs among the options of the module.
        extract: Options of `extract`: dictionaries are trained on stored activations. Without, forwards run again in
            every epoch.
    """

    model: Config = field(default_factory=dict)
    data: Config = field(default_factory=dict)
    images: Config = field(default_factory=dict)
    trainer: Config = field(default_factory=dict)
    apart: bool = False
    seeds: list[int] = field(default_factory=lambda: [0])
    extract: Config | None = None

    def __post_init__(self) -> None:
        """Let what is left out be empty."""
        fill(self, "model", "data", "images", "trainer")
        if min(self.seeds, default=0) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds {self.seeds}: each once, from 0")


@dataclass(frozen=True)
class Levels:
    """The levels that are wanted; one that is null is left out.

    Args:
        neurons: What single units respond to.
        sae: Features of dictionaries.
        circuits: Circuits of tasks, at one loss.
        attribution: Maps of images, and how faithful they are.
    """

    neurons: Level | None = field(default_factory=Level)
    sae: Level | None = field(default_factory=Level)
    circuits: Level | None = field(default_factory=Level)
    attribution: Level | None = field(default_factory=Level)

    def __post_init__(self) -> None:
        """Refuse options of one level in another."""
        for name in ("neurons", "circuits", "attribution"):
            if (level := getattr(self, name)) is not None and (level.seeds != [0] or level.extract is not None):
                raise UserError(f"levels.{name}: `seeds` and `extract` are options of levels.sae alone")
        if self.sae is not None and not self.sae.seeds:
            raise UserError("levels.sae.seeds is empty")


def works(levels: Levels, shared: Shared, models: Models, seed: int) -> Iterator[Work]:
    """Yield the units of all levels for models of one seed.

    Args:
        levels: Their options.
        shared: What all units have in common.
        models: The models, the reference first.
        seed: Seed of everything that the levels draw.
    """
    mark = f".{seed}" if seed else ""  # of names
    for name in ("neurons", "circuits", "attribution"):
        level: Level | None = getattr(levels, name)
        if level is not None:
            for title, some in _sets(models, apart=level.apart):
                make = circuits if name == "circuits" else measured
                yield from make(f"{name}{mark}{title}", name, level, shared, some, seed)
    if levels.sae is not None:
        for model, backbone in models.items():
            if levels.sae.extract is not None:
                yield from extraction(levels.sae, levels.sae.extract, shared, model, backbone)
            for own in levels.sae.seeds:
                where = f"sae/{model}" + (f".s{own}" if len(levels.sae.seeds) > 1 else "")
                yield from dictionaries(where, levels.sae, shared, model, backbone, seed, own)


def accuracy(shared: Shared, model: str, backbone: Config, seed: int) -> Work:
    """Return the test of a model as a classifier."""
    lit = {"class_path": CLASSIFIER, "init_args": {"backbone": backbone}}
    config = {"seed_everything": seed, "model": lit, "data": shared.data, "trainer": shared.trainer}
    return Work(f"{model}/test", "test", config, (model,))


def measured(name: str, kind: str, level: Level, shared: Shared, models: Models, seed: int) -> Iterator[Work]:
    """Yield the test of neurons or of maps."""
    lit = {"neurons": "neurons.lit_neurons.LitNeurons", "attribution": "attribution.lit_attribution.LitAttribution"}
    config = {
        "seed_everything": seed,
        "model": {"class_path": f"impact_lightning.{lit[kind]}", "init_args": {**level.model, "models": dict(models)}},
        "data": shared.images(level.images),
        "trainer": merged(shared.trainer, level.trainer),
    }
    yield Work(name, "test", config, tuple(models), kind)


def circuits(name: str, kind: str, level: Level, shared: Shared, models: Models, seed: int) -> Iterator[Work]:
    """Yield the learning of circuits, and their test."""
    lit = "impact_lightning.circuits.lit_circuit.LitCircuit"
    tasks = "impact_lightning.circuits.task_data.TaskData"
    config = {
        "seed_everything": seed,
        "model": {"class_path": lit, "init_args": {**level.model, "models": dict(models)}},
        "data": {"class_path": tasks, "init_args": {**level.data, "data": shared.images(level.images)}},
        "trainer": merged(shared.trainer, level.trainer),
    }
    fit = Work(f"{name}/fit", "fit", config, tuple(models), kind)
    yield fit
    yield Work(f"{name}/test", "test", config, tuple(models), kind, f"${{{fit.name}}}/checkpoints/last.ckpt")


STORED = ("train", "val")  # splits


def _extraction(model: str, split: str) -> str:
    return f"sae/{model}/extract-{split}"


def extraction(level: Level, options: Config, shared: Shared, model: str, backbone: Config) -> Iterator[Work]:
    """Yield what stores the activations of a model for its dictionaries of all seeds."""
    what: Config = {key: level.data[key] for key in ("sites", "tokens") if key in level.data}
    images = shared.images(level.images)
    for split in STORED:
        config = {"backbone": backbone, "data": images, "split": split, **what, **options}
        yield Work(_extraction(model, split), "extract", config, (model,), "sae")


def dictionaries(
    name: str, level: Level, shared: Shared, model: str, backbone: Config, seed: int, own: int
) -> Iterator[Work]:
    """Yield the training of the dictionaries of a model, and their test."""
    images = shared.images(level.images)
    live = {"class_path": "impact_lightning.activations.live.LiveActivations"}
    live["init_args"] = {**level.data, "backbone": backbone, "data": images}  # type: ignore[assignment]
    lit = {"class_path": "impact_lightning.sae.lit_sae.LitSAE", "init_args": {**level.model, "seeds": [own]}}
    config: dict[str, Any] = {
        "seed_everything": seed,
        "model": lit,
        "data": live,
        "trainer": merged(shared.trainer, level.trainer),
    }
    read = config
    if level.extract is not None:
        stored: dict[str, Any] = {split: f"${{{_extraction(model, split)}}}/shards" for split in STORED}
        stored |= {key: level.data[key] for key in ("batch_size",) if key in level.data}
        cached = {"class_path": "impact_lightning.activations.cached.CachedActivations", "init_args": stored}
        read = {**config, "data": cached}
    fit = Work(f"{name}/fit", "fit", read, (model,), "sae")
    yield fit
    yield Work(f"{name}/test", "test", config, (model,), "sae", f"${{{fit.name}}}/checkpoints/last.ckpt")


def _sets(models: Models, *, apart: bool) -> Iterator[tuple[str, Models]]:
    """Yield the models that one unit measures together, with a mark of its name."""
    names = list(models)
    if not apart or len(names) < 3:
        yield "", models
        return
    for name in names[1:]:
        yield f"/{name}", {names[0]: models[names[0]], name: models[name]}
