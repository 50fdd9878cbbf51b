"""Checks before any work: every configuration of the plan is parsed, and the images are opened."""

import copy
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from impact_lightning.activations.extract import extract
from impact_lightning.backbones import Backbone, expand_sites
from impact_lightning.circuits.task_data import TaskData
from impact_lightning.data.module import ImageDataModule
from impact_lightning.sparsity.prune import prune
from impact_lightning.suite.plan import Plan, image_configs
from impact_lightning.suite.sources import Config
from impact_lightning.suite.work import Verb, Work, placed
from impact_lightning.types import UserError


def open_images(config: Config, where: str) -> ImageDataModule:
    """Return the images of a configuration."""
    from jsonargparse import ArgumentParser

    with _named(where):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--data", type=ImageDataModule)
        data: ImageDataModule = parser.instantiate(parser.parse_object({"data": copy.deepcopy(config)})).data
        data.prepare_data()
        data.setup("fit")
        return data


def image_fingerprints(plan: Plan) -> dict[str, str]:
    """Return the fingerprint of the images of every configuration of them in the plan, as JSON."""
    found: dict[str, str] = {}
    for work in plan.works.values():
        for key in image_configs(work.config):
            if key not in found:
                data = open_images(json.loads(key), work.name)
                found[key] = " ".join(data.fingerprint(split) for split in ("train", "val", "test"))
    return found


def check_plan(plan: Plan) -> None:
    """Find mistakes before hours of work: options, sites and classes that there are not."""
    _check_options(plan)
    _check_sites(plan)
    _check_tasks(plan)


def _check_options(plan: Plan) -> None:
    """Parse the configuration of every unit as its command will."""
    seen = set()
    for work in plan.works.values():
        if (key := _kind(work)) not in seen:
            seen.add(key)
            with _named(work.name):
                _parse(work.verb, copy.deepcopy(work.config))  # the parser writes into what it parses


def _check_sites(plan: Plan) -> None:
    """Refuse sites that a model does not have, before it is trained."""
    built: dict[str, Any] = {}
    for work in plan.works.values():
        options = work.config if work.verb == "extract" else work.config.get("data", {}).get("init_args", {})
        if "sites" not in options:
            continue
        backbone = {key: value for key, value in options["backbone"].items() if key in ("name", "model_args")}
        key = json.dumps(backbone, sort_keys=True)
        with _named(work.name):
            if key not in built:
                with torch.device("meta"):
                    built[key] = Backbone(**backbone).build()
            expand_sites(built[key], options["sites"])


def _check_tasks(plan: Plan) -> None:
    """Refuse tasks of classes that the images do not have."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=TaskData)
    fits = [work for work in plan.works.values() if work.verb == "fit" and work.level == "circuits"]
    for work in {json.dumps(work.config["data"]): work for work in fits}.values():  # each of them takes seconds
        with _named(work.name):
            parser.instantiate(parser.parse_object({"data": copy.deepcopy(work.config["data"])}))


def _kind(work: Work) -> str:
    """Return what units have in common that differ in names of files and models only: one of them is parsed."""
    config = placed(work.config, lambda _: "unit")
    options = config.get("model", {}).get("init_args", {})
    if "models" in options:
        options["models"] = list(options["models"].values())
    return json.dumps([work.verb, config], sort_keys=True)


def _parse(verb: Verb, config: Config) -> None:
    """Parse the configuration of a unit; nothing is built."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    if verb in ("prune", "extract"):
        parser.add_function_arguments(prune if verb == "prune" else extract, skip={"out"})
        parser.parse_object(config)
        return
    parser.add_argument("--model", type=LightningModule)
    parser.add_argument("--data", type=LightningDataModule)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False)
    model, data = config["model"], config["data"]
    parser.parse_object({"model": _with_classes(model), "data": data, "trainer": config["trainer"]})


def _with_classes(model: Config) -> Config:
    """Return a module's configuration with a number of classes, which the command takes from the data."""
    options = model.get("init_args", {})
    module, _, name = model["class_path"].rpartition(".")
    needs = "n_classes" in inspect.signature(getattr(import_module(module), name)).parameters
    return {**model, "init_args": {**options, "n_classes": 2}} if needs else model


@contextmanager
def _named(unit: str) -> Iterator[None]:
    """Say which unit a mistake is in."""
    try:
        yield
    except UserError as error:
        raise UserError(f"unit {unit}: {error}") from error
    except Exception as error:  # jsonargparse raises many kinds
        cause: Any = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        said = cause or error
        raise UserError(f"unit {unit}: {_short(str(said))}") from error


def _short(message: str) -> str:
    """Return the lines of a parser's message that say something."""
    noise = ("Does not validate against any", "Subtypes", "Errors:", "- Expected a <class 'NoneType'>", "Given value")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(noise))
