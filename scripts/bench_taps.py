"""Benchmarks of the taps: what it costs to read activations, beside a forward that nobody watches."""

import copy
import statistics
import time
from collections.abc import Callable
from typing import TypedDict

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.backbones import capture, site_names

MODEL = "vit_small_patch16_224"
BATCH, THREADS, REPEATS = 16, 2, 11
MIDDLE = 6


class Measurement(TypedDict):
    """One line of the benchmark: a figure, and the floor measured in turns with it."""

    name: str
    figure_ms: float
    floor_ms: float
    ratio: float
    target: float
    setup: dict[str, str | int]


def taps() -> list[Measurement]:
    """Measure a capture in the middle against a truncated forward, and captures of everything against a forward."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.inference_mode():
            return [one_site(), all_sites(), all_sites_reopened()]
    finally:
        torch.set_num_threads(threads)


def one_site() -> Measurement:
    """Capture what the middle block writes; the floor runs the blocks up to it by hand."""
    model, images = _model_and_images()

    def figure() -> None:
        with capture(model, f"blocks.{MIDDLE}.resid_post"):
            model(images)

    def floor() -> None:
        x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        for block in model.blocks[: MIDDLE + 1]:
            x = block(x)

    return _compare("capture one resid_post, beside a truncated forward", figure, floor, target=1.03)


def all_sites() -> Measurement:
    """Capture every site but the attention probabilities, which the model never computes, in a `with` around the loop.

    Each forward takes over the memory of the one before, so no page is new.
    """
    model, images = _model_and_images()
    watched = copy.deepcopy(model)
    with capture(watched, _all_but_probs(model)):
        return _compare(
            "capture all sites, beside a forward", lambda: watched(images), lambda: model(images), target=1.15
        )


def all_sites_reopened() -> Measurement:
    """The same in a `with` for each forward: 0.8 GB are returned to the system and faulted in again each time."""
    model, images = _model_and_images()

    def figure() -> None:
        with capture(model, _all_but_probs(model)):
            model(images)

    return _compare(
        "capture all sites in a `with` of its own, beside a forward", figure, lambda: model(images), target=1.15
    )


def _all_but_probs(model: VisionTransformer) -> list[str]:
    return [site for site in site_names(model) if not site.endswith(".attn_probs")]


def _model_and_images() -> tuple[VisionTransformer, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = timm.create_model(MODEL).eval()
    assert isinstance(model, VisionTransformer)
    return model, torch.randn(BATCH, 3, 224, 224, generator=generator)


def _compare(name: str, figure: Callable[[], object], floor: Callable[[], object], *, target: float) -> Measurement:
    """Return the medians of both, run in turns so that a drift of the machine reaches both alike."""
    for _ in range(2):
        _milliseconds(figure)
        _milliseconds(floor)
    times = [(_milliseconds(figure), _milliseconds(floor)) for _ in range(REPEATS)]
    figure_ms, floor_ms = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "name": name,
        "figure_ms": figure_ms,
        "floor_ms": floor_ms,
        "ratio": figure_ms / floor_ms,
        "target": target,
        "setup": {"model": MODEL, "batch": BATCH, "threads": THREADS, "repeats": REPEATS},
    }


def _milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)
