"""Benchmarks of pruning: the whole of it beside the forward passes that its calibration cannot avoid."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from bench_activations import _Noise
from torch import nn

from impact_lightning.backbones import Backbone
from impact_lightning.sparsity import CalibrationImages, prune

ROUNDS = 3


def wanda(
    model: str = "vit_small_patch16_224", images: int = 0, batch: int = 0, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Prune every linear layer of the blocks by Wanda, in one shot; the floor runs the bare forwards of calibration.

    The figure is everything that the verb does: it builds the model, draws and normalises images, calibrates, scores,
    masks, and writes weights and masks to disk. On a CPU 256 images in batches of 16 are the default, on a GPU the
    verb's own 4096 in batches of 64.
    """
    is_cuda = torch.cuda.is_available()
    images, batch = images or (4096 if is_cuda else 256), batch or (64 if is_cuda else 16)
    data, backbone = _Noise(images), Backbone(model)
    device = torch.device("cuda" if is_cuda else "cpu")
    vit = backbone.build().eval().requires_grad_(False).to(device)
    drawn = CalibrationImages(data, images, batch, seed=0)
    ready = [x for x, _ in zip(drawn.batches(device), range(2), strict=False)]

    with tempfile.TemporaryDirectory() as folder:

        def figure() -> None:
            prune(
                backbone=backbone,
                data=data,
                out=Path(folder) / "pruned.safetensors",
                method="wanda",
                sparsity=0.5,
                images=images,
                batch_size=batch,
            )

        with contextlib.redirect_stdout(io.StringIO()):
            prune(backbone=backbone, data=data, out=Path(folder) / "warm.safetensors", sparsity=0.5, images=batch)
            pruning, bare = _interleaved(figure, lambda: _forwards(vit, ready, images // batch), rounds)
    return {
        "name": "one-shot Wanda, beside its calibration forwards",
        "figure_s": pruning,
        "floor_s": bare,
        "ratio": pruning / bare,
        "target": 1.25,
        "setup": {
            "figure": "seconds of the verb `prune`: all of it, from building the model to two files on disk",
            "floor": "seconds of as many bare forwards of the same model, on batches that lie ready",
            "model": model,
            "images": images,
            "batch": batch,
            "rounds": rounds,
            "threads": torch.get_num_threads(),
        },
    }


@torch.no_grad()
def _forwards(vit: nn.Module, ready: list[torch.Tensor], n: int) -> None:
    for i in range(n):
        vit(ready[i % len(ready)])
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _interleaved(first: Callable[[], None], second: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Return the median seconds of two things that are measured in turn, so that both meet the same disturbances."""
    times = [(_seconds(first), _seconds(second)) for _ in range(rounds)]
    return median(a for a, _ in times), median(b for _, b in times)


def _seconds(run: Callable[[], None]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start
