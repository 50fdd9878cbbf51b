"""Means of measures are means over units and classes, and in a draw of classes those of what was drawn."""

from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.metrics.auroc import AUROCs
from impact_lightning.metrics.bootstrap import class_draws
from impact_lightning.metrics.precision_at_k import Precision
from impact_lightning.neurons.layers import Layer
from impact_lightning.neurons.measures import ClassMean, Measure, Measures

C, NAN = 4, torch.nan
HEADS = Layer(block=0, kind="head", n_units=3, width=2, units=0, channels=0)
NEURONS = Layer(block=0, kind="neuron", n_units=7, width=1, units=3, channels=6)
LATER = Layer(block=2, kind="neuron", n_units=6, width=1, units=10, channels=13)
K = 16


def made(
    seed: int = 0, null_units: Tensor | None = None, layers: tuple[Layer, ...] = (HEADS, NEURONS, LATER)
) -> Measures:
    """Return random measures with gaps."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        x = torch.randn(shape, dtype=torch.float64, generator=generator)
        return torch.where(torch.rand(shape, generator=generator) < 0.2, NAN, x)

    null_units = torch.arange(K) if null_units is None else null_units
    measures = {
        "classes": Measure(random(C, len(layers)), random(C, len(layers)), "some null"),
        "classes_against_a_number": Measure(random(C, len(layers)), torch.tensor(0.5, dtype=torch.float64), "a half"),
        "classes_alone": Measure(random(C, len(layers))),
        "units": Measure(random(K), random(len(null_units)), "some null"),
        "units_against_a_number": Measure(random(K), torch.tensor(0.25, dtype=torch.float64), "a quarter"),
        "units_alone": Measure(random(K)),
    }
    nothing: Any = torch.zeros(0)
    return Measures(
        layers=layers,
        n_classes=C,
        by_name=measures,
        null_units=null_units,
        preferred=torch.randint(-1, C, (K,), generator=generator),
        auroc=AUROCs(nothing, nothing, nothing, nothing),
        top=Precision(nothing, nothing, nothing, nothing, nothing),
        own=[],
        scores=nothing,
        images=10,
    )


def terms(measures: Measures, name: str, layers: list[int]) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Return the terms of a mean, and those of its null, each with its class."""
    measure, values, null = measures.by_name[name], [], []
    for place in layers:
        layer = measures.layers[place]
        if measure.is_of_units:
            for unit in range(layer.units, layer.units + layer.n_units):
                owner, value = int(measures.preferred[unit]), float(measure.values[unit])
                values.append((owner, value))
                if measure.null is not None and measure.null.ndim == 0 and value == value:
                    null.append((owner, float(measure.null)))
                elif measure.null is not None and measure.null.ndim and unit in measures.null_units.tolist():
                    null.append((owner, float(measure.null[measures.null_units.tolist().index(unit)])))
        else:
            for c in range(C):
                value = float(measure.values[c, place])
                values.append((c, value))
                if measure.null is not None and value == value:
                    null.append((c, float(measure.null if measure.null.ndim == 0 else measure.null[c, place])))
    return [term for term in values if term[1] == term[1]], [term for term in null if term[1] == term[1]]


def mean_of(pairs: list[tuple[int, float]], drawn: list[int]) -> float:
    """Return the mean of the terms of classes that were drawn, as often as they were; those of none always count."""
    chosen = [value for owner, value in pairs if owner == -1]
    chosen += [value for c in drawn for owner, value in pairs if owner == c]
    return sum(chosen) / len(chosen) if chosen else NAN


NAMES = list(made().by_name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layers", [[0], [1], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("null_units", [None, torch.arange(0, K, 3)])
def test_a_mean_is_that_of_its_terms_in_every_draw_of_classes(
    name: str, layers: list[int], null_units: Tensor | None
) -> None:
    measures = made(null_units=null_units)
    draws = torch.randint(C, (50, C), generator=torch.Generator().manual_seed(2))
    weights = torch.stack([torch.bincount(row, minlength=C) for row in draws]).double()
    for mean, pairs in zip(measures.mean(name, layers), terms(measures, name, layers), strict=True):
        if mean is None:
            assert measures.by_name[name].null is None
            continue
        assert mean.n == len(pairs)
        assert mean.value == pytest.approx(mean_of(pairs, list(range(C))), nan_ok=True, rel=1e-12, abs=1e-12)
        expected = torch.tensor([mean_of(pairs, row.tolist()) for row in draws], dtype=torch.float64)
        torch.testing.assert_close(mean.drawn(weights), expected, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_draw_of_every_class_once_is_the_mean() -> None:
    for name in NAMES:
        mean, _ = made().mean(name, [0, 1, 2])
        assert mean.drawn(torch.ones(1, C, dtype=torch.float64)).item() == pytest.approx(mean.value, rel=1e-14)


def test_a_mean_of_nothing_is_undefined() -> None:
    empty = ClassMean(torch.zeros(C + 1, dtype=torch.float64), torch.zeros(C + 1, dtype=torch.float64))
    assert empty.value != empty.value
    assert empty.drawn(class_draws(C, draws=3)).isnan().all()
    assert empty.n == 0


def test_a_draw_without_any_term_is_undefined() -> None:
    mean = ClassMean(
        torch.tensor([6.0, 0.0, 0.0], dtype=torch.float64), torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    )
    drawn = mean.drawn(torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64))
    assert drawn[0] == 3.0
    assert drawn[1].isnan()


def test_units_without_a_class_are_in_every_draw_once() -> None:
    measures = made()
    measures.preferred.fill_(-1)
    mean, null = measures.mean("units", [1, 2])
    assert null is not None
    for part in (mean, null):
        drawn = part.drawn(class_draws(C, draws=20))
        torch.testing.assert_close(drawn, torch.full_like(drawn, part.value), rtol=1e-15, atol=0)


def test_a_null_counts_only_where_there_is_a_value() -> None:
    measures = made()
    values = measures.by_name["classes"].values
    values[1:] = NAN
    values[0] = 1.0
    null = measures.by_name["classes"].null
    assert null is not None
    null[:] = torch.arange(C)[:, None]
    _, mean = measures.mean("classes", [0, 2])
    assert mean is not None
    assert (mean.value, mean.n) == (0.0, 2)
