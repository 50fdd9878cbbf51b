"""Benchmarks of the metrics of units: all of them beside the forward passes that they ride on."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from bench_sparsity import _interleaved
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchmetrics import Metric

from impact_lightning.backbones import Backbone, capture, patch
from impact_lightning.metrics.unit_bins import unit_edges
from impact_lightning.neurons.attribution_patching import AttributionPatching, Gradients
from impact_lightning.neurons.first_pass import FirstPass
from impact_lightning.neurons.layers import Layer, find_layers
from impact_lightning.neurons.null import Labels
from impact_lightning.neurons.second_pass import SecondPass
from impact_lightning.neurons.settings import Settings
from impact_lightning.neurons.study import Study
from impact_lightning.types import ImageBatch

IMAGES, CLASSES = 50_000, 1000  # of ImageNet's validation split
BLOCKS, WIDTH = 12, 3072  # of ViT-B's neurons
SAMPLED, FILLED = 4, 8  # batches for bins, which take as long whatever is in them, and before the strongest images


def selectivity(model: str = "vit_small_patch16_224", batch: int = 0, rounds: int = 7) -> list[dict[str, Any]]:
    """Measure all neurons of a model in both passes, beside bare forwards; attribution patching; memory of states.

    The first part adds all metrics and their nulls, with activations captured and pooled, to the forwards of both
    passes; attribution patching and ablations, which need more of the model than its forward, are not in it. The
    second is attribution patching beside a bare forward and backward without gradients of weights. The third counts
    the bytes of all states and tables of each pass, at 12 x 3072 neurons, 1000 classes and 50,000 images.
    """
    is_cuda = torch.cuda.is_available()
    batch = batch or (256 if is_cuda else 32)
    device = torch.device("cuda" if is_cuda else "cpu")
    vit = Backbone(model).build().eval().requires_grad_(False).to(device)
    assert isinstance(vit, VisionTransformer)
    layers = find_layers(vit, None, ["neuron"])
    images = _images(vit, batch, device)
    setup = {
        "model": model,
        "units": layers[-1].of_units.stop,
        "classes": CLASSES,
        "batch": batch,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }
    return [
        _metrics(vit, layers, images, rounds, setup),
        _patching(vit, layers, images, rounds, setup),
        *_memory(),
    ]


def _metrics(
    vit: VisionTransformer, layers: list[Layer], images: Tensor, rounds: int, setup: dict[str, Any]
) -> dict[str, Any]:
    watched = copy.deepcopy(vit)  # the floor runs a model that has no hooks
    labels = Labels(torch.arange(IMAGES) % CLASSES, seed=0)
    study = Study("model", watched, layers, labels, CLASSES, Settings(), seed=0)
    batches = _batches(images)
    for _ in range(SAMPLED):
        study.sample(next(batches))
    study.draw_bins()

    @torch.no_grad()
    def bare() -> None:
        vit(images)
        _wait(images)

    @torch.no_grad()
    def first() -> None:
        batch = next(batches)
        watched(batch.images)
        study.first_pass.update_pooled(study.pooled(captured, "cls"), batch.labels, batch.row)
        _wait(images)

    @torch.no_grad()
    def second() -> None:
        batch = next(batches)
        watched(batch.images)
        study.second_pass.update(
            study.pooled(captured, "cls"), study.pooled(captured, "patch_max"), batch.labels, batch.row
        )
        _wait(images)

    bare()
    with capture(watched, [layer.site for layer in layers], stop=False) as captured:
        for _ in range(FILLED):  # the first images of a pass are all among the strongest so far
            first()
        first_s, floor_first = _interleaved(first, bare, rounds)
    study.choose()
    with capture(watched, [layer.site for layer in layers], stop=False) as captured:
        second()
        second_s, floor_second = _interleaved(second, bare, rounds)
    figure, floor = first_s + second_s, floor_first + floor_second
    return {
        "name": "all metrics of all neurons in both passes, beside bare forwards",
        "figure_s": figure,
        "floor_s": floor,
        "ratio": figure / floor,
        "ratio_first": first_s / floor_first,
        "ratio_second": second_s / floor_second,
        "target": 1.10,
        "setup": {
            **setup,
            "figure": "median seconds of both passes over a batch: forward, capture, pooling, metrics, nulls",
            "floor": "median seconds of two forwards of the same model without hooks, measured in turns",
        },
    }


def _patching(
    vit: VisionTransformer, layers: list[Layer], images: Tensor, rounds: int, setup: dict[str, Any]
) -> dict[str, Any]:
    watched, labels = copy.deepcopy(vit), torch.arange(len(images), device=images.device) % CLASSES
    metric = AttributionPatching(layers, CLASSES).to(images.device)

    def bare() -> None:
        with patch(vit, {"blocks.0.resid_pre": lambda x: x.detach().requires_grad_()}), torch.enable_grad():
            with capture(vit, "blocks.0.resid_pre", stop=False) as captured:
                logits = vit(images)
            own = logits.gather(1, labels[:, None]).sum()
            torch.autograd.grad(own, captured["blocks.0.resid_pre"])
        _wait(images)

    with Gradients(watched, [layer.site for layer in layers], 0).reading() as run:

        def figure() -> None:
            _, activations, gradients = run(images, labels)
            metric.update(activations, gradients, labels)
            _wait(images)

        for _ in range(2):
            figure()
            bare()
        figure_s, floor_s = _interleaved(figure, bare, rounds)
    return {
        "name": "attribution patching, beside forward and backward",
        "figure_s": figure_s,
        "floor_s": floor_s,
        "ratio": figure_s / floor_s,
        "target": 1.10,
        "setup": {
            **setup,
            "figure": "median seconds of forward, backward to every neuron, and the sums of a batch",
            "floor": "median seconds of forward, and backward to the first block without gradients of weights",
        },
    }


def _memory() -> list[dict[str, Any]]:
    """Count what the two passes hold at the scale of ImageNet and ViT-B."""
    layers = [Layer(i, "neuron", WIDTH, 1, i * WIDTH, i * WIDTH) for i in range(BLOCKS)]
    n = layers[-1].of_units.stop
    labels = Labels(torch.arange(IMAGES) % CLASSES, seed=0)
    x, rows = torch.randn(64, n), torch.arange(64)  # metrics share what they sum from their first update on
    first_pass = FirstPass(layers, labels, CLASSES, unit_edges(x, 1024), k=60)
    nothing = {layer.site: torch.zeros(64, 1, WIDTH) for layer in layers}
    first_pass.update(nothing, nothing, x, rows, rows)
    parts = [_part("first", first_pass)]
    first = first_pass.compute()
    del first_pass
    second_pass = SecondPass(layers, labels, CLASSES, first, torch.zeros(n), Settings())
    second_pass.update(x, x, rows, rows)
    return [*parts, _part("second", second_pass)]


def _part(name: str, states: nn.Module) -> dict[str, Any]:
    gigabytes = _bytes(states) / 1e9
    return {
        "name": f"states and tables of the {name} pass at the scale of ImageNet",
        "figure_gb": gigabytes,
        "target_gb": 2.0,
        "ratio": gigabytes / 2.0,
        "setup": {"units": BLOCKS * WIDTH, "classes": CLASSES, "images": IMAGES, "figure": "gigabytes held"},
    }


def _bytes(module: nn.Module) -> int:
    """Return the bytes of all states and buffers of metrics inside a module, each memory once."""
    tensors = [*module.buffers()]
    for metric in module.modules():
        if isinstance(metric, Metric):
            tensors += [getattr(metric, name) for name in metric._defaults]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(held.values())


def _batches(images: Tensor) -> Iterator[ImageBatch]:
    """Yield the same images under other rows, a little different each time."""
    generator = torch.Generator().manual_seed(0)
    while True:
        rows = torch.randperm(IMAGES, generator=generator)[: len(images)].to(images.device)
        shade = 1 + 0.1 * torch.randn(len(images), 1, 1, 1, generator=generator).to(images)
        yield ImageBatch(images * shade, rows % CLASSES, rows)


def _images(vit: VisionTransformer, batch: int, device: torch.device) -> Tensor:
    h, w = vit.patch_embed.img_size or (224, 224)
    return torch.randn(batch, 3, h, w, generator=torch.Generator().manual_seed(0)).to(device)


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()
