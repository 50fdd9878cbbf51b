"""The plan: all units of work in the order of work, and what each of them depends on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from impact_lightning import __version__
from impact_lightning.backbones.named import NAME
from impact_lightning.suite import levels
from impact_lightning.suite.levels import Levels
from impact_lightning.suite.outcome import LEVELS
from impact_lightning.suite.sources import Config, Shared, Source
from impact_lightning.suite.work import Work, placed
from impact_lightning.types import UserError

FILES = ("weights", "head")  # keys of a backbone
LONGEST = 60  # letters of a model's name: it becomes that of folders
SCHEME = 2  # of fingerprints: a new number makes every unit anew


@dataclass(frozen=True)
class Member:
    """A model of the plan.

    Args:
        name: Its name, with its seed where there are several.
        group: Its name in the configuration.
        seed: Seed of its training.
        source: How it comes to be.
        backbone: The architecture and its weights.
        reference: Name of the model that it is compared with.
    """

    name: str
    group: str
    seed: int
    source: Source
    backbone: Config
    reference: str


@dataclass(frozen=True)
class Plan:
    """Units in an order in which each comes after those that it reads from.

    Args:
        works: The units by name.
        members: The models, those of each seed together, the reference of each seed first.
        data: Fingerprint of the images of each configuration of them, as JSON.
    """

    works: dict[str, Work]
    members: list[Member]
    data: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What each unit depends on: its configuration, files, images, units before it, and the program's version."""
        found: dict[str, str] = {}
        for name, work in self.works.items():
            config = known_by_bytes(placed([work.config, work.checkpoint], found.__getitem__))
            images = [self.data[key] for key in image_configs(work.config) if key in self.data]
            order = [*work.config.get("model", {}).get("init_args", {}).get("models", {})]  # the reference first
            everything = [SCHEME, __version__, work.verb, config, order, images]
            found[name] = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]
        return found

    def folder(self, name: str) -> str:
        """Return the folder of a unit, below that of the run; another configuration has another one."""
        return f"units/{name}-{self.fingerprints[name][:8]}"


def make_plan(models: Mapping[str, Source], levels_: Levels, shared: Shared, seeds: list[int], reference: str) -> Plan:
    """Return the plan of everything that is to be made and measured.

    Args:
        models: How each model comes to be, by name.
        levels_: Options of the levels.
        shared: What all units have in common.
        seeds: Seeds of training; each gives one model of each name, and one comparison of them.
        reference: Name of the model that the others are compared with.
    """
    _check(models, seeds, reference)
    works: list[Work] = []
    members: list[Member] = []
    for seed in seeds:
        made: dict[str, Member] = {}
        names = {group: group if seed == seeds[0] else f"{group}.{seed}" for group in models}
        for group in _order(models, reference):
            source, name = models[group], names[group]
            origin = made[source.origin].backbone if source.origin is not None else None
            own, backbone = source.works(name, shared, seed, origin)
            works += [*own, levels.accuracy(shared, name, backbone, seed)]
            made[group] = Member(name, group, seed, source, backbone, names[reference])
        compared = [made[reference], *(one for group, one in made.items() if group != reference)]
        members += compared
        works += levels.works(levels_, shared, {one.name: one.backbone for one in compared}, seed)
    names_ = [work.name for work in works]
    if twice := {name for name in names_ if names_.count(name) > 1}:
        raise UserError(f"models: two units would be called {min(twice)}; give that model another name")
    return Plan({work.name: work for work in works}, members)


def with_data(plan: Plan, data: Mapping[str, str]) -> Plan:
    """Return the plan with the fingerprints of its images."""
    return replace(plan, data=data)


def image_configs(config: Any) -> list[str]:
    """Return the configurations of images in that of a unit, as JSON."""
    data = config.get("data")
    while data and isinstance(data.get("init_args", {}).get("data"), dict):  # what wraps images has them as `data`
        data = data["init_args"]["data"]
    return [json.dumps(data, sort_keys=True)] if data and "CachedActivations" not in data["class_path"] else []


def _check(models: Mapping[str, Source], seeds: list[int], reference: str) -> None:
    for name in models:
        if name in LEVELS or len(str(name)) > LONGEST:
            raise UserError(f"models: {name!r}: levels have that name, or it is longer than {LONGEST} letters")
        if not NAME.fullmatch(str(name)):
            raise UserError(f"models: {name!r} names files, so it may hold letters, digits and . _ + - only")
    if reference not in models:
        raise UserError(f"reference {reference!r} is none of the models: {', '.join(models) or 'there are none'}")
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"seeds {seeds}: give at least one, each once, from 0")
    if len(seeds) > 1 and any(f"{name}.{seed}" in models for name in models for seed in seeds):
        raise UserError("models: a name with a dot and a seed at its end is that of a further seed; choose another")


def _order(models: Mapping[str, Source], reference: str) -> list[str]:
    """Return names so that each model comes after the one that it is made from, the reference as early as may be."""
    order: list[str] = []

    def add(name: str, below: tuple[str, ...] = ()) -> None:
        if name in below:
            raise UserError(f"models.{name}.of: these models are made from each other: {' <- '.join((*below, name))}")
        origin = models[name].origin
        if origin is not None and origin not in models:
            raise UserError(f"models.{name}.of: there is no model {origin!r}")
        if origin is not None:
            add(origin, (*below, name))
        if name not in order:
            order.append(name)

    for name in (reference, *models):
        add(name)
    return order


def known_by_bytes(value: Any) -> Any:
    """Return a configuration in which files of weights stand as their bytes, wherever they lie."""
    if isinstance(value, dict):
        return {
            key: _digest(Path(item))
            if key in FILES and isinstance(item, str) and Path(item).is_file()
            else known_by_bytes(item)
            for key, item in value.items()
        }
    return [known_by_bytes(item) for item in value] if isinstance(value, list) else value


def _digest(path: Path) -> str:
    """Return the hash of a file's bytes."""
    about = path.stat()
    return _digest_of(path.resolve(), about.st_size, about.st_mtime_ns)


@lru_cache
def _digest_of(path: Path, size: int, changed: int) -> str:
    """Return the hash of a file, which is read once as long as it does not change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
