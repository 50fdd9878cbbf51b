"""Benchmarks of circuits: learning masks and running circuits, beside passes that a model cannot avoid."""

import copy
from typing import Any

import torch
from bench_sparsity import _interleaved
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from impact_lightning.backbones import Backbone
from impact_lightning.circuits.fold import Folder
from impact_lightning.circuits.gate import Heaviside
from impact_lightning.circuits.gated import Gated, gating
from impact_lightning.circuits.means import Baseline
from impact_lightning.circuits.nodes import Nodes

TOGETHER = 32  # circuits that share a batch


def circuit(model: str = "deit3_small_patch16_224", batch: int = 0, rounds: int = 9) -> list[dict[str, Any]]:
    """Learn masks of one and of many circuits, and run a folded one, beside passes of the bare model.

    The floor of a mask step is a forward and a backward with respect to the images alone, without gradients of weights.
    Many circuits see as many images as one. A folded circuit runs beside a plain forward.
    """
    is_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if is_cuda else "cpu")
    vit = Backbone(model).build().eval().requires_grad_(False).to(device)
    batch = batch or (64 if is_cuda else 8)
    setup = {"model": model, "batch": batch, "rounds": rounds, "threads": torch.get_num_threads()}
    return [_step(vit, batch, rounds, setup), _together(vit, rounds, setup), _folded(vit, batch, rounds, setup)]


class _Masks:
    """One step of mask training without data and optimiser: forward, loss, gradient of the thresholds."""

    def __init__(self, gated: Gated, n_circuits: int, images: Tensor) -> None:
        self.gated, self.images = gated, images
        nodes = gated.nodes
        self.thresholds = (0.1 + 0.01 * torch.randn(n_circuits, nodes.n, device=images.device)).requires_grad_()
        self.baseline = Baseline(torch.zeros(1, nodes.n, device=images.device), nodes)
        self.of = torch.arange(len(images), device=images.device) * n_circuits // len(images)

    def __call__(self) -> None:
        masks = Heaviside.apply(self.thresholds, 1.0)
        logits = self.gated(self.images, masks[self.of], self.baseline)
        torch.autograd.grad(logits[:, 0].sum() + 1e-4 * masks.sum(), self.thresholds)
        _wait(self.images)


def _step(vit: VisionTransformer, batch: int, rounds: int, setup: dict[str, Any]) -> dict[str, Any]:
    images, watched = _images(vit, batch), copy.deepcopy(vit)

    def floor() -> None:
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(vit(leaf)[:, 0].sum(), leaf)
        _wait(images)

    with gating(watched, Nodes(watched)) as gated:
        step = _Masks(gated, 1, images)
        step()
        floor()
        figure_s, floor_s = _interleaved(step, floor, rounds)
    return _part("mask step, beside forward and backward to the images", figure_s, floor_s, 1.15, setup)


def _together(vit: VisionTransformer, rounds: int, setup: dict[str, Any]) -> dict[str, Any]:
    images = _images(vit, TOGETHER)
    with gating(vit, Nodes(vit)) as gated:
        many, one = _Masks(gated, TOGETHER, images), _Masks(gated, 1, images)
        many()
        one()
        figure_s, floor_s = _interleaved(many, one, rounds)
    return _part(f"step of {TOGETHER} circuits, beside one on as many images", figure_s, floor_s, 1.1, setup)


def _folded(vit: VisionTransformer, batch: int, rounds: int, setup: dict[str, Any]) -> dict[str, Any]:
    images, nodes = _images(vit, batch), Nodes(vit)
    mask = torch.rand(nodes.n, generator=torch.Generator().manual_seed(0)) < 0.3
    folded = Folder(vit, nodes).load(mask, torch.zeros(nodes.n))

    def run(model: nn.Module) -> None:
        with torch.no_grad():
            model(images)
        _wait(images)

    run(folded)
    run(vit)
    figure_s, floor_s = _interleaved(lambda: run(folded), lambda: run(vit), rounds)
    return _part("folded circuit, beside a plain forward", figure_s, floor_s, 1.02, setup)


def _part(name: str, figure_s: float, floor_s: float, target: float, setup: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "figure_s": figure_s,
        "floor_s": floor_s,
        "ratio": figure_s / floor_s,
        "target": target,
        "setup": {**setup, "figure": "median seconds", "floor": "median seconds, measured in turns"},
    }


def _images(vit: VisionTransformer, n: int) -> Tensor:
    h, w = vit.patch_embed.img_size or (224, 224)
    images = torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(0))
    return images.to(next(vit.parameters()).device)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
