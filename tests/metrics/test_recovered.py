"""Recovered is 1 for the clean model, 0 for the ablated one, and the pooled ratio between."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.metrics.recovered import Recovered
from tests.distributed import run_distributed

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def batch(n: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (n,), generator=generator)
    noise = torch.randn(3, n, 4, generator=generator)
    clean = 2.0 * F.one_hot(labels, 4) + noise[0]
    return clean, clean + 0.5 * noise[1], noise[2], labels


def part_of(whole: Batch, part: slice) -> Batch:
    clean, spliced, ablated, labels = whole
    return clean[part], spliced[part], ablated[part], labels[part]


def measured(*batches: Batch) -> dict[str, float]:
    metric = Recovered()
    for each in batches:
        metric.update(*each)
    return {name: float(value) for name, value in metric.compute().items()}


def by_hand(clean: Tensor, spliced: Tensor, ablated: Tensor, labels: Tensor) -> dict[str, float]:
    models = [x.double() for x in (clean, spliced, ablated)]
    loss = [float(F.cross_entropy(x, labels)) for x in models]
    top1 = [float((x.argmax(1) == labels).double().mean()) for x in models]
    target = models[0].log_softmax(1)
    kl = [float(F.kl_div(x.log_softmax(1), target, log_target=True, reduction="batchmean")) for x in models]
    return {
        "loss_recovered": (loss[2] - loss[1]) / (loss[2] - loss[0]),
        "top1_recovered": (top1[2] - top1[1]) / (top1[2] - top1[0]),
        "kl_recovered": (kl[2] - kl[1]) / kl[2],
        "loss_difference": loss[1] - loss[0],
        "top1_difference": top1[1] - top1[0],
        "kl": kl[1],
        "n": len(labels),
    }


def test_equals_torch() -> None:
    assert measured(batch()) == pytest.approx(by_hand(*batch()), rel=1e-9)


@pytest.mark.parametrize(("which", "share"), [(0, 1.0), (2, 0.0)])
def test_clean_recovers_all_and_ablated_nothing(which: int, share: float) -> None:
    logits = batch()
    result = measured((logits[0], logits[which], logits[2], logits[3]))
    assert [result[f"{name}_recovered"] for name in ("loss", "top1", "kl")] == [share] * 3


def test_batches_in_any_order_equal_the_whole() -> None:
    parts = [part_of(batch(), part) for part in (slice(33, 40), slice(5, 5), slice(0, 33))]
    assert measured(*parts) == pytest.approx(measured(batch()), rel=1e-12)


def of_rank(rank: int, cut: int) -> dict[str, float]:
    part = slice(0, cut) if rank == 0 else slice(cut, None)
    return measured(part_of(batch(), part)) if cut < 40 or rank == 0 else measured()


@pytest.mark.parametrize("cut", [11, 40])  # with 40, the second rank sees nothing
def test_two_uneven_ranks_equal_one(cut: int) -> None:
    assert run_distributed(of_rank, cut) == [pytest.approx(measured(batch()), rel=1e-12)] * 2


def test_half_logits_are_summed_in_float64() -> None:
    clean, spliced, ablated, labels = batch()
    half = (clean.bfloat16(), spliced.bfloat16(), ablated.bfloat16(), labels)
    assert measured(half) == pytest.approx(by_hand(*half), rel=1e-9)


def test_ablation_without_effect_leaves_nothing_to_recover() -> None:
    clean, spliced, _, labels = batch()
    result = measured((clean, spliced, clean, labels))
    assert all(math.isnan(result[f"{name}_recovered"]) for name in ("loss", "top1", "kl"))
    assert result["loss_difference"] > 0


def test_a_class_that_is_excluded_adds_no_divergence() -> None:
    logits = torch.tensor([[1.0, -torch.inf]])
    assert measured((logits, logits, torch.zeros(1, 2), torch.tensor([0])))["kl"] == 0.0
