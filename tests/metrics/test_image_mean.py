"""The mean over images is exact, leaves out what is undefined, and has the interval of a bootstrap over images."""

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from impact_lightning.metrics.image_mean import ImageMean, MeanOverImages
from tests.distributed import run_distributed

N = 300


def scores() -> Tensor:
    drawn = torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.3
    drawn[::50] = torch.nan
    return drawn


def found(*parts: Tensor, values: Tensor | None = None, draws: int = 200) -> MeanOverImages:
    metric = ImageMean(draws=draws)
    values = scores() if values is None else values
    for part in parts:
        metric.update(values[part], part)
    result: MeanOverImages = metric.compute()
    return result


def numbers(result: MeanOverImages) -> list[float]:
    return [float(part) for part in result]


def test_equals_the_mean_of_what_is_defined() -> None:
    result = found(torch.arange(N))
    assert result.mean.item() == pytest.approx(scores().nanmean().item(), abs=2**-32)
    assert (result.n.item(), result.undefined.item()) == (N - 6, 6)


def test_order_and_batches_do_not_move_a_bit() -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    assert (
        numbers(found(*order.split(7))) == numbers(found(torch.arange(N))) == numbers(found(*order.flip(0).split(90)))
    )


def of_rank(rank: int) -> list[float]:
    return numbers(found(torch.arange(rank, N, 3) if rank == 0 else torch.arange(N)[torch.arange(N) % 3 != 0]))


def test_two_uneven_ranks_equal_one_to_the_last_bit() -> None:
    assert run_distributed(of_rank) == [numbers(found(torch.arange(N)))] * 2


def test_two_seeds_in_a_collection_are_two_metrics_though_they_begin_alike() -> None:
    collection = MetricCollection({"one": ImageMean(seed=0), "other": ImageMean(seed=1000)})
    collection.update(torch.full((2,), torch.nan), torch.arange(N, N + 2))  # no seed draws anything of these
    collection.update(scores(), torch.arange(N))
    result = collection.compute()
    assert numbers(result["one"])[:3] == numbers(found(torch.arange(N)))[:3]
    assert numbers(result["other"])[1:3] != numbers(result["one"])[1:3]


def test_the_interval_has_the_width_of_a_normal_approximation() -> None:
    defined = scores()[~scores().isnan()]
    result = found(torch.arange(N), draws=2000)
    assert result.high - result.low == pytest.approx(2 * 1.96 * float(defined.std()) / len(defined) ** 0.5, rel=0.1)
    assert result.low < result.mean < result.high


def test_differences_are_compared_in_pairs() -> None:
    images = torch.arange(N)
    easy = 3 * torch.randn(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    better = easy + 0.1 + 0.01 * torch.randn(N, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    paired = found(images, values=better - easy)
    draws = []
    for values in (better, easy):
        metric = ImageMean()
        metric.update(values, images)
        draws.append(metric.means())
    torch.testing.assert_close(paired.mean, (draws[0] - draws[1])[0], rtol=0, atol=1e-9)
    spread = (draws[0] - draws[1])[1:].std()
    assert paired.high - paired.low == pytest.approx(3.92 * float(spread), rel=0.15)
    assert paired.low > 0.09


def test_nothing_is_nan() -> None:
    assert found().mean.isnan()
    assert found(torch.arange(1)).mean.isnan()  # its score is undefined
    assert found(torch.arange(1)).undefined == 1


def test_the_interval_says_how_it_was_made() -> None:
    metric = ImageMean(draws=50)
    metric.update(scores(), torch.arange(N))
    interval = metric.interval()
    assert interval.how == "bootstrap over images, 50 draws"
    assert interval.low == metric.compute().low


def test_refuses_scores_that_cannot_be_summed() -> None:
    with pytest.raises(ValueError, match="below"):
        ImageMean().update(torch.tensor([torch.inf]), torch.tensor([0]))
