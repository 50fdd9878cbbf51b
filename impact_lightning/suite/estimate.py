"""The estimate: how long the units of a plan take and how much they write, from one measured forward.

It is rough by design: forwards are counted, not what else a unit does. It says whether a run is a matter of minutes or
of days.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch

from impact_lightning.backbones import Backbone
from impact_lightning.backbones.image_size import check_image_size
from impact_lightning.data.module import ImageDataModule
from impact_lightning.suite.plan import Plan, image_configs
from impact_lightning.suite.sources import Config
from impact_lightning.suite.work import Work

OVERHEAD = 1.5  # of everything that is no forward: reading images, writing files, the optimiser
START = 1.0  # seconds until a process works
TRAINING = 3.0  # forwards that a step on an image costs
CURVES, MAPS = 60, 400  # forwards of an image: of two curves of 28 steps, of making the maps of all methods
CHECKS = 80  # forwards of each image of a task, for all checks of a circuit
BYTES = 4


@dataclass(frozen=True)
class Cost:
    """What a unit costs.

    Args:
        seconds: Time.
        bytes: Room on the disk.
    """

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Scale:
    """How large model and data are.

    Args:
        forward: Seconds of a forward of one image.
        parameters: Of the model.
        width: Channels of the residual stream.
        tokens: Of an image.
        classes: Of the data.
        images: Of each split.
    """

    forward: float
    parameters: int
    width: int
    tokens: int
    classes: int
    images: Mapping[str, int]


def estimate(plan: Plan, scales: Callable[[Work], Scale]) -> dict[str, Cost]:
    """Return what each unit costs."""
    return {name: _cost(work, scales(work)) for name, work in plan.works.items()}


def scales(backbone: Backbone, images: Callable[[Config], ImageDataModule]) -> Callable[[Work], Scale]:
    """Return what tells how large the model and the images of a unit are; one forward is measured.

    Args:
        backbone: The architecture.
        images: Opens the images of a configuration.
    """
    opened: dict[str, ImageDataModule] = {}
    model: Any = None
    forward = 0.0

    def scale(work: Work) -> Scale:
        nonlocal model, forward
        [key] = image_configs(work.config) or list(opened)[:1]
        if key not in opened:
            opened[key] = images(json.loads(key))
        data = opened[key]
        if model is None:
            bare = replace(backbone, pretrained=False, weights=None, head=None, num_classes=data.n_classes)
            with torch.device("meta"):
                model = bare.build()
            check_image_size(model, "backbone", data.image_shape)
            forward = _apart(_seconds_of_forward, bare, data.image_shape)
        n = {"train": len(data.split("train")), "val": len(data.split("val")), "test": len(data.split("test"))}
        parameters = sum(p.numel() for p in model.parameters())
        tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        return Scale(forward, parameters, model.embed_dim, tokens, data.n_classes, n)

    return scale


def _apart(function: Callable[..., float], *args: Any) -> float:
    """Return a function's result from a process of its own: this one stays free of threads, since it forks."""
    with get_context("fork").Pool(1) as pool:
        return pool.apply(function, args)


def _seconds_of_forward(backbone: Backbone, shape: tuple[int, int, int]) -> float:
    """Return the seconds that a forward of one image takes, on a GPU if there is one."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    model = backbone.build().eval().to(place)
    images = torch.zeros(256 if place == "cuda" else 16, *shape, device=place)
    seconds = []
    with torch.inference_mode():
        for _ in range(3):
            began = time.perf_counter()
            float(model(images).sum())
            seconds.append(time.perf_counter() - began)
    return min(seconds) / len(images)


# ----------------------------------------------------------------------------------------------------- kinds of units


def _cost(work: Work, scale: Scale) -> Cost:
    """Return what a unit costs."""
    if work.verb == "prune":
        return _priced(work.config.get("images", 4096), scale, BYTES * 1.25 * scale.parameters)
    if work.verb == "extract":
        n = scale.images[work.config.get("split", "train")]
        kept = 1 if work.config.get("tokens", {}).get("kind") == "cls" else scale.tokens
        return _priced(n, scale, 2 * n * kept * scale.width * len(work.config["sites"]))
    options = work.config["model"].get("init_args", {})
    kind = work.level or "model"
    return {"model": _classifier, "neurons": _neurons, "sae": _sae, "circuits": _circuits, "attribution": _maps}[kind](
        work, options, scale
    )


def _priced(forwards: float, scale: Scale, size: float) -> Cost:
    return Cost(START + OVERHEAD * forwards * scale.forward, size)


def _steps(work: Work, per_epoch: float) -> float:
    """Return the steps of a training."""
    trainer = work.config["trainer"]
    steps, epochs = trainer.get("max_steps", -1), trainer.get("max_epochs")
    by_epochs = math.inf if epochs == -1 else per_epoch * (1000 if epochs is None else epochs)
    found = min(by_epochs, math.inf if steps in (-1, None) else steps)
    return found if math.isfinite(found) else 1000 * per_epoch


def _classifier(work: Work, options: Config, scale: Scale) -> Cost:
    if work.verb == "test":
        return _priced(scale.images["test"], scale, 1e5)
    batch = work.config["data"].get("init_args", {}).get("batch_size", 64)
    steps = _steps(work, scale.images["train"] // batch)
    validated = scale.images["val"] * max(1, steps * batch / scale.images["train"])
    return _priced(TRAINING * steps * batch + validated, scale, 2 * 3 * BYTES * scale.parameters)


def _neurons(work: Work, options: Config, scale: Scale) -> Cost:
    forwards = len(work.models) * scale.images["test"] * (1 + TRAINING + 2)
    return _priced(forwards, scale, len(work.models) * 4 * scale.width * 12 * scale.classes * BYTES)


def _sae(work: Work, options: Config, scale: Scale) -> Cost:
    latents = sum(options.get("expansions") or [8]) * scale.width * len(options.get("kinds", [0]))
    beside = 3 * latents / (4 * 12 * scale.width)  # of a forward: a dictionary's products beside those of twelve blocks
    if work.verb == "test":
        return _priced((2 + beside) * 3 * scale.images["test"], scale, 300 * latents)
    read = scale.images["train"] * (1 if "max_steps" in work.config["trainer"] else _steps(work, 1))
    forward = 0 if _is_stored(work) else 1
    return _priced((forward + beside * _share(work, scale)) * read, scale, 6 * BYTES * latents * scale.width)


def _share(work: Work, scale: Scale) -> float:
    """Return the share of tokens that a dictionary reads."""
    tokens = work.config["data"].get("init_args", {}).get("tokens", {}).get("kind")
    return 1 / scale.tokens if _is_stored(work) or tokens == "cls" else 1.0


def _is_stored(work: Work) -> bool:
    return "CachedActivations" in work.config["data"]["class_path"]


def _circuits(work: Work, options: Config, scale: Scale) -> Cost:
    data = work.config["data"].get("init_args", {})
    tasks, seeds = len(data.get("tasks") or range(scale.classes)), len(options.get("seeds") or [0])
    circuits = len(work.models) * tasks * (seeds + 2)  # two controls
    if work.verb == "test":
        return _priced(circuits * 2 * data.get("report_images", 128) * CHECKS, scale, circuits * 4e6)
    batch = options.get("learning", {}).get("batch", 16)
    return _priced(TRAINING * circuits * batch * _steps(work, 1), scale, circuits * 12 * 11 * scale.width * BYTES)


def _maps(work: Work, options: Config, scale: Scale) -> Cost:
    methods, protocols = len(options.get("methods") or range(13)), len(options.get("protocols") or range(5))
    forwards = len(work.models) * scale.images["test"] * (methods * protocols * CURVES + MAPS)
    return _priced(forwards, scale, len(work.models) * (1e6 + scale.images["test"] * methods * 500))
