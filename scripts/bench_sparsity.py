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
import torch.nn.functional as F
from bench_activations import _Noise
from torch import nn

from impact_lightning.backbones import Backbone
from impact_lightning.backbones.backbone import ModelArgs
from impact_lightning.sparsity import CalibrationImages, find_targets, prune
from impact_lightning.sparsity.density_schedule import DensitySchedule
from impact_lightning.sparsity.sparse_steps import SparseSteps
from impact_lightning.sparsity.sparse_tensor import SparseTensor

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


def sparse_train(
    model: str = "vit_small_patch16_224", images: int = 16, density: float = 0.1, rounds: int = 7
) -> list[dict[str, Any]]:
    """Train with sparse weights, beside the same step with dense ones: of ViT-S, and of the transformers of recipes.

    Both are whole steps of a classifier: forward, backward, AdamW. The figure adds all that `WeightSparse` does in a
    step, in the middle of an annealing over 500 steps. On a GPU ViT-S takes 256 images, under autocast.
    """
    images = 256 if torch.cuda.is_available() else images
    recipes = {
        f"ViT-S, {images} images": (Backbone(model), images, 4),
        "ViT of sparse_cifar10.yaml, 128 images": (_recipe_vit(4, 128, 6, 4), 128, 1),
        "ViT of sparse_rooms.yaml, 64 images": (_recipe_vit(8, 96, 4, 3), 64, 1),
    }
    parts = []
    for name, (backbone, batch, min_alive) in recipes.items():
        sparse, dense = _Training(backbone, batch, density, min_alive), _Training(backbone, batch)
        for _ in range(3):
            sparse.step()
            dense.step()
        figure, floor = _interleaved(sparse.step, dense.step, rounds)
        parts.append(
            {
                "name": f"weight-sparse step, beside the dense one: {name}",
                "figure_s": figure,
                "floor_s": floor,
                "ratio": figure / floor,
                "selection_share": median(sparse.seconds[3:]) / floor,
                "target": 1.15,
                "setup": {
                    "figure": "median seconds of a whole step, with all that WeightSparse adds to it",
                    "floor": "median seconds of a whole step of the same model, measured in turns",
                    "model": name,
                    "density": density,
                    "min_alive": min_alive,
                    "rounds": rounds,
                    "threads": torch.get_num_threads(),
                },
            }
        )
    return parts


def _recipe_vit(patch: int, width: int, depth: int, heads: int) -> Backbone:
    args: ModelArgs = {"img_size": 32, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    return Backbone("vit_tiny_patch16_224", model_args={**args, "norm_layer": "rmsnorm"}, num_classes=10)


class _Training:
    """A model and its optimiser; with a density, weight-sparse in the middle of its annealing."""

    def __init__(self, backbone: Backbone, batch: int, density: float = 1.0, min_alive: int = 0) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vit = backbone.build().to(self.device)
        size = self.vit.patch_embed.img_size
        self.images = torch.randn(batch, 3, *size, device=self.device)
        self.labels = torch.arange(batch, device=self.device) % 10
        self.optimizer = torch.optim.AdamW(self.vit.parameters(), lr=1e-3, fused=True)
        tensors = [SparseTensor(target, min_alive=min_alive) for target in find_targets(self.vit)]
        schedule = DensitySchedule(density)
        self.sparse = SparseSteps(tensors, schedule, 1000, sharkfin=True, gradient="clip", regrow=True)
        self.steps, self.seconds = 250, list[float]()  # seconds of what is added to a step

    def step(self) -> None:
        """Make one step and wait for it."""
        self.optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = F.cross_entropy(self.vit(self.images), self.labels)
        loss.backward()
        start = self._now()
        if self.sparse.schedule.target < 1:
            self.sparse.before(self.optimizer, self.steps)
        middle = self._now()
        self.optimizer.step()
        self.steps += 1
        end = self._now()
        if self.sparse.schedule.target < 1:
            self.sparse.after(self.optimizer, self.steps)
        self.seconds.append(self._now() - end + middle - start)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()


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
