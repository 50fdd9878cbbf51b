"""Top maps are the activations of the top samples, whatever the order, the batches and the ranks."""

import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.top_maps import TopMaps
from impact_lightning.metrics.top_samples import TopSamples
from tests.distributed import run_distributed

IMAGES, TOKENS, LATENTS, K = 23, 4, 5, 3


def activations() -> Tensor:
    """Return few distinct values, so that ties are everywhere; the last latent never fires."""
    x = torch.randint(-4, 5, (IMAGES, TOKENS, LATENTS), generator=torch.Generator().manual_seed(0)).relu() / 4
    x[..., -1] = 0
    return x


def measured(*parts: Tensor) -> tuple[list[list[int]], list[list[list[float]]]]:
    metric = TopMaps(LATENTS, TOKENS, K)
    for part in parts:
        metric.update(activations()[part], part)
    maps = metric.compute()
    return maps.samples.image.tolist(), maps.map.tolist()


def by_hand() -> tuple[list[list[int]], list[list[list[float]]]]:
    samples = TopSamples(LATENTS, K)
    samples.update(activations(), torch.arange(IMAGES))
    image = samples.compute().image.tolist()
    nothing = [0.0] * TOKENS
    maps = [[nothing if i < 0 else activations()[i, :, f].tolist() for i in row] for f, row in enumerate(image)]
    return image, maps


@pytest.mark.parametrize("size", [1, 2, 5, IMAGES])
@pytest.mark.parametrize("seed", range(3))
def test_maps_are_the_activations_of_the_samples_in_any_order_and_batch(size: int, seed: int) -> None:
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(seed))
    assert measured(*order.split(size)) == by_hand()


def test_an_empty_batch_changes_nothing() -> None:
    assert measured(torch.arange(9), torch.arange(0), torch.arange(9, IMAGES)) == by_hand()


def measured_on_rank(rank: int) -> tuple[list[list[int]], list[list[list[float]]]]:
    return measured(*torch.arange(rank, IMAGES, 2).split(3))


def test_two_ranks_find_what_one_finds() -> None:
    assert run_distributed(measured_on_rank) == [by_hand()] * 2


def empty_on_one_rank(rank: int) -> tuple[list[list[int]], list[list[list[float]]]]:
    return measured(torch.arange(IMAGES)) if rank else measured()


def test_an_idle_rank_changes_nothing() -> None:
    assert run_distributed(empty_on_one_rank) == [by_hand()] * 2
