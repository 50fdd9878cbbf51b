"""Benchmarks of relevance maps: beside one plain forward of the same images."""

from statistics import median
from typing import Any

import torch
from bench_sparsity import _seconds
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.method import Method
from impact_lightning.attribution.transformer_attribution import TransformerAttribution
from impact_lightning.backbones import Backbone


def relevance(
    model: str = "vit_tiny_patch16_224", batch: int = 16, threads: int = 2, rounds: int = 9
) -> list[dict[str, Any]]:
    """Measure transformer attribution of a batch, from relevance and from attention alone, beside one forward.

    One forward, one backward without gradients of weights, and for relevance three products for each linear layer and
    five for each attention: the arithmetic alone is 4.9 forwards, and 2.1 for attention alone.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        vit = Backbone(model).build().eval().requires_grad_(False).to(device)
        images = _images(vit, batch).to(device)
        return _measure(vit, images, rounds, {"model": model, "batch": batch, "threads": threads, "rounds": rounds})
    finally:
        torch.set_num_threads(before)


def _measure(vit: VisionTransformer, images: Tensor, rounds: int, setup: dict[str, Any]) -> list[dict[str, Any]]:
    targets = torch.arange(len(images), device=images.device) % vit.num_classes
    methods: dict[str, tuple[Method, float]] = {
        "transformer attribution, from relevance": (TransformerAttribution(), 5.5),
        "transformer attribution, from attention alone": (TransformerAttribution("attention"), 2.4),
    }

    def forward() -> None:
        with torch.no_grad():
            vit(images)
        _wait(images)

    def explain(method: Method) -> None:
        method(vit, images, targets)
        _wait(images)

    times: dict[str, list[float]] = {name: [] for name in ("forward", *methods)}
    for turn in range(rounds + 1):  # all meet the same disturbances; the first turn warms up
        times["forward"].append(_seconds(forward))
        for name, (method, _) in methods.items():
            times[name].append(_seconds(lambda method=method: explain(method)))  # type: ignore[misc]
        if turn == 0:
            times = {name: [] for name in times}
    floor = median(times["forward"])
    return [
        {
            "name": name,
            "figure_s": median(times[name]),
            "floor_s": floor,
            "ratio": median(times[name]) / floor,
            "target": target,
            "setup": {
                **setup,
                "figure": "median seconds of the maps of a batch",
                "floor": "median seconds of one forward of the same batch without gradients, measured in turns",
            },
        }
        for name, (_, target) in methods.items()
    ]


def _images(vit: VisionTransformer, batch: int) -> Tensor:
    h, w = vit.patch_embed.img_size or (224, 224)
    return torch.randn(batch, 3, h, w, generator=torch.Generator().manual_seed(0))


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
