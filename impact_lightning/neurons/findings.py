"""Findings: means of measures over layers with nulls and intervals, and the differences between two models."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from impact_lightning.metrics.bootstrap import class_draws, interval_over_classes
from impact_lightning.neurons.layers import Kind
from impact_lightning.neurons.measures import ClassMean, Measures
from impact_lightning.results import Interval, Null


@dataclass(frozen=True)
class Finding:
    """A mean over some layers, or the difference of two.

    Args:
        measure: Name of the measure.
        of: What it was measured of: `neurons`, `heads`, or one layer as in `blocks.5.neurons`.
        value: The mean; of a difference that of the values less their nulls.
        interval: How far it moves with other classes.
        null: The mean where there is nothing to find; None where labels have no part in the measure.
        n: Terms of the mean: units, or classes times layers.
        error: How far bins may have put the mean off; None where it is exact.
        layers: The layers.
    """

    measure: str
    of: str
    value: float
    interval: Interval
    null: Null | None
    n: int
    error: float | None
    layers: tuple[str, ...]


def findings(measures: Measures, seed: int) -> Iterator[Finding]:
    """Yield every measure over all neurons, over all heads, and over each layer."""
    draws = class_draws(measures.n_classes, seed=seed)
    for of, layers in groups(measures):
        for name, measure in measures.by_name.items():
            value, null = measures.mean(name, layers)
            yield Finding(
                measure=name,
                of=of,
                value=value.value,
                interval=interval_over_classes(value.drawn(draws), seed=seed),
                null=None if null is None else Null(null.value, measure.how),
                n=value.n,
                error=measures.error(name, layers),
                layers=_named(measures, layers),
            )


def differences(measures: Measures, base: Measures, seed: int) -> Iterator[Finding]:
    """Yield how much more a model has of everything than another one, nulls subtracted, in pairs of classes.

    Layers that one of them has not got are left out.

    Args:
        measures: What is known of the model.
        base: What is known of the other one.
        seed: Seed of the draws of classes.
    """
    draws = class_draws(measures.n_classes, seed=seed)
    shared = {str(layer) for layer in measures.layers} & {str(layer) for layer in base.layers}
    theirs = dict(groups(base, shared))
    for of, layers in groups(measures, shared):
        for name, measure in measures.by_name.items():
            mine, other = measures.mean(name, layers), base.mean(name, theirs[of])
            how = "no difference" if measure.null is None else "no difference beyond that of the nulls"
            yield Finding(
                measure=name,
                of=of,
                value=_excess(mine) - _excess(other),
                interval=interval_over_classes(_drawn(mine, draws) - _drawn(other, draws), seed=seed),
                null=Null(0.0, how),
                n=mine[0].n,
                error=None
                if measure.error is None
                else sum(one.error(name, places) or 0.0 for one, places in ((measures, layers), (base, theirs[of]))),
                layers=_named(measures, layers),
            )


def groups(measures: Measures, among: Container[str] | None = None) -> list[tuple[str, list[int]]]:
    """Return what findings are of: each kind of unit over all layers, and each layer; with places of the layers.

    Args:
        measures: The measures.
        among: Names of the layers that count; all by default.
    """
    layers = [(at, layer) for at, layer in enumerate(measures.layers) if among is None or str(layer) in among]
    kinds: Sequence[Kind] = get_args(Kind)
    by_kind = [(f"{kind}s", [place for place, layer in layers if layer.kind == kind]) for kind in kinds]
    return [(of, places) for of, places in by_kind if places] + [(str(layer), [place]) for place, layer in layers]


def _named(measures: Measures, places: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(measures.layers[place]) for place in places)


def _excess(mean: tuple[ClassMean, ClassMean | None]) -> float:
    """Return a mean less its null."""
    value, null = mean
    return value.value - (0.0 if null is None else null.value)


def _drawn(mean: tuple[ClassMean, ClassMean | None], draws: Tensor) -> Tensor:
    """Return a mean less its null in each draw of classes, `(R,)`."""
    value, null = mean
    return value.drawn(draws) - (0.0 if null is None else null.drawn(draws))
