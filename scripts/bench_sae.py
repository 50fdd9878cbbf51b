"""Benchmark of a sparse autoencoder's training step, beside the one matrix product that it cannot avoid."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypedDict

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from impact_lightning.activations import LiveActivations
from impact_lightning.backbones import Backbone
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.product import product
from impact_lightning.sae.batch_topk import BatchTopK
from impact_lightning.sae.lit_sae import LitSAE
from impact_lightning.sae.optimizer import DictionaryAdam

WARM_UP, REPEATS, N_BATCHES = 12, 31, 43
ROUNDS = 3


class Measurement(TypedDict):
    """One line of the benchmark: a figure and the floor measured beside it."""

    name: str
    figure_ms: float
    floor_ms: float  # the encoder's product as `torch.mm` computes it
    onednn_ms: float  # the same product by the routine that the step uses, which is faster
    ratio: float
    target: float
    setup: dict[str, str | int]


def sae(
    d_in: int = 768,
    latents: int = 6144,
    k: int = 32,
    batch: int = 1024,
    threads: int = 2,
    screen: Literal["fp32", "bf16"] = "fp32",
) -> Measurement:
    """Measure one whole exact BatchTopK step, interleaved with its encoder's matrix product in float32.

    The step holds selection, decoding, backward, dead-latent counters, projection, clipping, Adam and unit rows.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        model = BatchTopK(d_in, latents, k=k, screen=screen)
        model.take_shortcuts()
        optimizer = DictionaryAdam(model.parameter_groups())
        batches = [torch.randn(batch, d_in) for _ in range(N_BATCHES)]
        room = torch.empty(batch, latents)

        def step(x: torch.Tensor) -> None:
            optimizer.zero_grad()
            model.objective(x).loss.backward()
            optimizer.step()

        def floor(x: torch.Tensor) -> None:
            torch.mm(x, model.w_enc.detach().T, out=room)

        def own(x: torch.Tensor) -> None:
            product(model.w_enc.detach(), x)

        figures, floors, products = [], [], []
        for i in range(WARM_UP + REPEATS):
            x = batches[i % N_BATCHES]
            floors.append(milliseconds(floor, x))
            figures.append(milliseconds(step, x))
            products.append(milliseconds(own, x))
    finally:
        torch.set_num_threads(before)
    figure, least = statistics.median(figures[WARM_UP:]), statistics.median(floors[WARM_UP:])
    return Measurement(
        name=f"BatchTopK step, {screen} screen, {latents} latents",
        figure_ms=figure,
        floor_ms=least,
        ratio=figure / least,
        target={("fp32", 6144): 1.4, ("bf16", 6144): 0.85, ("fp32", 12288): 1.6}.get((screen, latents), 0.9),
        onednn_ms=statistics.median(products[WARM_UP:]),
        setup={"d_in": d_in, "latents": latents, "k": k, "batch": batch, "threads": threads, "screen": screen},
    )


def together(dictionaries: int = 8, steps: int = 60) -> list[dict[str, Any]]:
    """Train several dictionaries in one pass over live activations; the floor: as many passes less the saved forwards.

    What is timed is Lightning's training loop, from its start to its end, of the real LitSAE on a small ViT. The
    forwards that a pass needs are timed by going through the same loader alone.
    """
    passes: dict[str, list[float]] = {"together": [], "alone": [], "forwards": []}
    for _ in range(ROUNDS):
        passes["together"].append(_fit(dictionaries, steps))
        passes["alone"].append(_fit(1, steps))
        passes["forwards"].append(_forwards(steps))
    one_pass, alone, forwards = (statistics.median(times) for times in passes.values())
    floor = dictionaries * alone - (dictionaries - 1) * forwards
    return [
        {
            "name": f"{dictionaries} dictionaries in one pass",
            "figure_s": one_pass,
            "floor_s": floor,
            "ratio": one_pass / floor,
            "target": 1.0,
            "setup": {
                "figure": f"seconds of {steps} steps of 1024 tokens with {dictionaries} dictionaries",
                "floor": f"{dictionaries} fits of one dictionary, {alone:.2f} s each, less the forwards that are saved",
                "forwards_s": forwards,
                "separate_s": dictionaries * alone,
            },
        }
    ]


class _Clock(Callback):
    """Times the training loop alone, without building anything."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.perf_counter()


def _activations() -> LiveActivations:
    torch.manual_seed(0)
    args: Any = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4}
    backbone = Backbone("vit_tiny_patch16_224", model_args=args, num_classes=10)
    images = SceneData(Rooms(size=32), label=["shape"], n_train=4096, n_val=64, n_test=64)
    return LiveActivations(backbone, images, ["blocks.4.resid_post"], batch_size=1024, buffer_images=1024)


def _fit(dictionaries: int, steps: int) -> float:
    clock = _Clock()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = LitSAE([partial(BatchTopK, k=16)], seeds=list(range(dictionaries)))
    trainer.fit(module, datamodule=_activations())
    return clock.seconds


def _forwards(steps: int) -> float:
    loader = iter(_activations().train_dataloader())
    start = time.perf_counter()
    for _ in range(steps):
        next(loader)
    return time.perf_counter() - start


def milliseconds(call: Callable[[torch.Tensor], None], x: torch.Tensor) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call(x)
    return 1e3 * (time.perf_counter() - start)
