"""dictionary_learning's BatchTopK, trained as its own `trainSAE` does, on batches that are given."""

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import PathFinder
from itertools import chain
from time import perf_counter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from impact_lightning.sae.dictionary_learning import from_state
from impact_lightning.sae.folded import FoldedSAE

SAMPLE = 100  # batches that set the norm factor, as in `trainSAE`


@dataclass(frozen=True)
class Schedule:
    """Course of the peer's learning rate.

    Args:
        name: What it is called in the table.
        warmup_steps: Steps of linear warm-up.
        decay: Share of all steps at the end over which the rate falls to zero; 0 keeps it.
    """

    name: str
    warmup_steps: int
    decay: float


def trainer_class() -> Any:
    """Return `BatchTopKTrainer` without running the package's `__init__`, which imports nnsight for language models."""
    name = "dictionary_learning"
    found = PathFinder.find_spec(name)
    if found is None or found.submodule_search_locations is None:
        raise SystemExit(f"{name} is not installed here: see scripts/compare/README.md")
    package = ModuleType(name)
    package.__path__ = list(found.submodule_search_locations)
    sys.modules[name] = package
    return importlib.import_module(f"{name}.trainers.batch_top_k").BatchTopKTrainer


def train(
    batches: Iterable[Tensor], *, steps: int, width: int, latents: int, k: int, rate: float, seed: int, course: Schedule
) -> tuple[FoldedSAE, float]:
    """Return the dictionary for raw activations, with the peer's own threshold, and the seconds of a step.

    Args:
        batches: Batches `(B, D)` of raw activations, `steps` of them.
        steps: Length of the training.
        width: Channels D.
        latents: Latents F.
        k: Mean active latents of a token.
        rate: Learning rate.
        seed: Seed of the initial weights.
        course: Course of the learning rate; everything else keeps the peer's default.
    """
    trainer = trainer_class()(
        steps=steps,
        activation_dim=width,
        dict_size=latents,
        k=k,
        layer=0,
        lm_name="",
        lr=rate,
        warmup_steps=course.warmup_steps,
        decay_start=round(steps * (1 - course.decay)) if course.decay else None,
        seed=seed,
        device="cpu",
    )
    stream = iter(batches)
    first = [next(stream) for _ in range(min(SAMPLE, steps))]
    size = float(torch.stack([x.square().sum(1).mean() for x in first]).mean().sqrt())  # E‖x‖² becomes 1
    began = perf_counter()
    for step, x in enumerate(chain(first, stream)):
        trainer.update(step, x / size)
    seconds = (perf_counter() - began) / steps
    trainer.ae.scale_biases(size)  # as `trainSAE` does before it saves: for raw activations
    return from_state("BatchTopKSAE", trainer.ae.state_dict()), seconds
