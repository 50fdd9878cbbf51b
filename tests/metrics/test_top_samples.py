"""TopSamples keeps the strongest images exactly, whatever the order, the batches and the ranks."""

import math

import pytest
import torch
from torch import Tensor

from impact_lightning.metrics import top_samples
from impact_lightning.metrics.top_samples import TopSamples
from impact_lightning.types import UserError
from tests.distributed import run_distributed

IMAGES, TOKENS, LATENTS, K = 23, 4, 5, 3
Places = list[list[tuple[float, int, int]]]


def activations() -> Tensor:
    """Return few distinct values, so that ties are everywhere; the last latent never fires."""
    x = torch.randint(-4, 5, (IMAGES, TOKENS, LATENTS), generator=torch.Generator().manual_seed(0)) / 4
    x[..., -1] = 0
    return x


def measured(*parts: tuple[Tensor, ...], above: float = 0.0) -> Places:
    metric = TopSamples(LATENTS, K, above=above)
    for part in parts:
        metric.update(*part)
    value, image, token = (part.tolist() for part in metric.compute())
    return [
        [entry for entry in zip(*latent, strict=True) if entry[1] >= 0]
        for latent in zip(value, image, token, strict=True)
    ]


def by_hand(x: Tensor, above: float = 0.0) -> Places:
    places = []
    for latent in range(x.shape[2]):
        peaks = []
        for image in range(len(x)):
            values = x[image, :, latent].tolist()
            peaks.append((max(values), image, values.index(max(values))))
        peaks.sort(key=lambda peak: (-peak[0], peak[1]))
        places.append([peak for peak in peaks if peak[0] > above][:K])
    return places


@pytest.mark.parametrize("above", [0.0, 0.5, -math.inf])
def test_equals_a_sorted_list(above: float) -> None:
    assert measured((activations(), torch.arange(IMAGES)), above=above) == by_hand(activations(), above)


@pytest.mark.parametrize("seed", range(5))
def test_tokens_in_any_order_and_batch_give_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_samples, "ENTRIES_AT_A_TIME", 4 * LATENTS)
    rows = torch.cartesian_prod(torch.arange(IMAGES), torch.arange(TOKENS))
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    x = activations()[rows[:, 0], rows[:, 1]]  # (N, F)
    parts = [(x[part], *rows[part].unbind(1)) for part in (slice(0, 9), slice(9, 9), slice(9, None))]
    assert measured(*parts) == by_hand(activations())


def test_an_image_seen_twice_takes_one_place() -> None:
    whole = (activations(), torch.arange(IMAGES))
    assert measured(whole, whole) == by_hand(activations())


def test_half_activations_keep_their_values() -> None:
    assert measured((activations().bfloat16(), torch.arange(IMAGES))) == by_hand(activations())


def of_rank(rank: int, cut: int) -> Places:
    part = slice(cut) if rank == 0 else slice(cut, None)
    return measured((activations()[part], torch.arange(IMAGES)[part])) if cut < IMAGES or rank == 0 else measured()


@pytest.mark.parametrize("cut", [6, IMAGES])  # with all on the first, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [by_hand(activations())] * 2


def test_merged_metrics_equal_the_whole() -> None:
    first, second, whole = (TopSamples(LATENTS, K) for _ in range(3))
    first.update(activations()[:6], torch.arange(6))
    second.update(activations()[6:], torch.arange(6, IMAGES))
    whole.update(activations(), torch.arange(IMAGES))
    first.merge_state(second)
    assert first.best.equal(whole.best)


def test_free_places_are_marked() -> None:
    metric = TopSamples(LATENTS, K)
    metric.update(activations(), torch.arange(IMAGES))
    value, image, token = (part[-1] for part in metric.compute())
    assert value.isnan().all()
    assert (image == -1).all()
    assert (token == -1).all()


def test_refuses_what_has_no_order() -> None:
    with pytest.raises(UserError, match="not all finite"):
        measured((activations() * math.nan, torch.arange(IMAGES)))
    with pytest.raises(UserError, match="-1 is no number of an image"):
        measured((activations(), torch.arange(IMAGES) - 1))
