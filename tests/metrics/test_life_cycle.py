"""Every metric can be copied, saved, reset and merged, and keeps its precision whatever the precision of training."""

import pickle
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from impact_lightning.metrics.cosine import MeanCosine
from impact_lightning.metrics.density import FiringDensity
from impact_lightning.metrics.fvu import FVU
from impact_lightning.metrics.l0 import L0
from impact_lightning.metrics.monosemanticity import Monosemanticity
from impact_lightning.metrics.reconstruction_bias import ReconstructionBias
from impact_lightning.metrics.recovered import Recovered
from impact_lightning.metrics.top_samples import TopSamples

N, WIDTH = 24, 5


def activations(seed: int) -> Tensor:
    return torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(seed))


IMAGES = torch.arange(N)
Inputs = tuple[Tensor, ...]
METRICS: dict[str, tuple[Callable[[], Metric], Inputs]] = {
    "fvu": (lambda: FVU(WIDTH), (activations(0), activations(1))),
    "bias": (ReconstructionBias, (activations(0), activations(1))),
    "cosine": (MeanCosine, (activations(0), activations(1))),
    "l0": (lambda: L0(WIDTH), (activations(0).relu(),)),
    "density": (lambda: FiringDensity(WIDTH), (activations(0).relu(),)),
    "recovered": (Recovered, (activations(0), activations(1), activations(2), IMAGES % WIDTH)),
    "top_samples": (lambda: TopSamples(WIDTH, 3), (activations(0), IMAGES)),
    "monosemanticity": (lambda: Monosemanticity(WIDTH, WIDTH), (activations(0), activations(1))),
}


def updated(name: str, *, first: int = 0, last: int = N) -> Metric:
    make, inputs = METRICS[name]
    metric = make()
    metric.update(*(part[first:last] for part in inputs))
    return metric


def numbers(result: Any) -> list[float]:
    parts: Iterable[Tensor] = result.values() if isinstance(result, dict) else result
    return [value for part in parts for value in part.double().flatten().tolist()]


def expected(name: str) -> Any:
    return pytest.approx(numbers(updated(name).compute()), rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", METRICS)
def test_copies_continue_where_the_original_was(name: str) -> None:
    half = updated(name, last=N // 2)
    for copy in (pickle.loads(pickle.dumps(half)), half.clone()):
        copy.update(*(part[N // 2 :] for part in METRICS[name][1]))
        assert numbers(copy.compute()) == expected(name)


@pytest.mark.parametrize("name", METRICS)
def test_merging_gives_the_whole(name: str) -> None:
    metric = updated(name, last=5)
    metric.merge_state(updated(name, first=5))
    assert numbers(metric.compute()) == expected(name)


@pytest.mark.parametrize("name", METRICS)
def test_a_call_gives_the_batch_and_adds_it_to_the_whole(name: str) -> None:
    metric = updated(name, last=5)
    batch = metric(*(part[5:] for part in METRICS[name][1]))
    assert numbers(batch) == pytest.approx(numbers(updated(name, first=5).compute()), rel=1e-9, nan_ok=True)
    assert numbers(metric.compute()) == expected(name)


@pytest.mark.parametrize("name", METRICS)
def test_a_reset_forgets_everything(name: str) -> None:
    metric = updated(name)
    metric.reset()
    metric.update(*METRICS[name][1])
    assert numbers(metric.compute()) == expected(name)


@pytest.mark.parametrize("name", METRICS)
def test_a_half_precision_model_does_not_round_what_is_summed(name: str) -> None:
    metric = METRICS[name][0]()
    torch.nn.ModuleList([metric]).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        metric.update(*METRICS[name][1])
    assert numbers(metric.compute()) == expected(name)


@pytest.mark.parametrize("name", METRICS)
def test_states_stay_out_of_checkpoints_unless_asked_for(name: str) -> None:
    metric = updated(name)
    assert metric.state_dict() == {}
    metric.persistent(True)
    again = METRICS[name][0]()
    again.persistent(True)
    again.load_state_dict(metric.state_dict())
    again.update(*(part[:0] for part in METRICS[name][1]))
    assert numbers(again.compute()) == expected(name)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_plot(name: str) -> None:
    figure, axes = plt.subplots()
    updated(name).plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)


def test_a_collection_keeps_metrics_apart_that_differ_in_a_setting() -> None:
    low, high = TopSamples(WIDTH, 3), TopSamples(WIDTH, 3, above=1.5)
    collection = MetricCollection({"low": low, "high": high}, compute_groups=False)
    collection.update(activations(0), IMAGES)
    assert (high.compute().image == -1).sum() > (low.compute().image == -1).sum()
