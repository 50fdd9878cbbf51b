"""Benchmark of a sparse autoencoder's training step, beside the one matrix product that it cannot avoid."""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Literal, TypedDict

import torch

from impact_lightning.sae.batch_topk import BatchTopK
from impact_lightning.sae.optimizer import DictionaryAdam

WARM_UP, REPEATS, N_BATCHES = 12, 31, 43


class Measurement(TypedDict):
    """One line of the benchmark: a figure and the floor measured beside it."""

    name: str
    figure_ms: float
    floor_ms: float
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
        product = torch.empty(batch, latents)

        def step(x: torch.Tensor) -> None:
            optimizer.zero_grad()
            model.objective(x).loss.backward()
            optimizer.step()

        def floor(x: torch.Tensor) -> None:
            torch.mm(x, model.w_enc.detach().T, out=product)

        figures, floors = [], []
        for i in range(WARM_UP + REPEATS):
            x = batches[i % N_BATCHES]
            floors.append(milliseconds(floor, x))
            figures.append(milliseconds(step, x))
    finally:
        torch.set_num_threads(before)
    figure, least = statistics.median(figures[WARM_UP:]), statistics.median(floors[WARM_UP:])
    return Measurement(
        name=f"BatchTopK step, {screen} screen, {latents} latents",
        figure_ms=figure,
        floor_ms=least,
        ratio=figure / least,
        target={("fp32", 6144): 1.4, ("bf16", 6144): 0.85, ("fp32", 12288): 1.6}.get((screen, latents), 0.9),
        setup={"d_in": d_in, "latents": latents, "k": k, "batch": batch, "threads": threads, "screen": screen},
    )


def milliseconds(call: Callable[[torch.Tensor], None], x: torch.Tensor) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call(x)
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Print every combination of width and screen, or the one asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, nargs="*", default=[6144, 12288])
    parser.add_argument("--screen", choices=["fp32", "bf16"], nargs="*", default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    for latents in chosen.latents:
        for screen in chosen.screen:
            line = sae(latents=latents, screen=screen, threads=chosen.threads)
            print(
                f"{line['name']}: {line['figure_ms']:.1f} ms, product alone {line['floor_ms']:.1f} ms,"
                f" ratio {line['ratio']:.2f} of at most {line['target']:.2f}"
            )


if __name__ == "__main__":
    main()
