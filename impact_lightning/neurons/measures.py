"""Measures: numbers of classes and of units, each with its null, and their means as functions of drawn classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.metrics.auroc import AUROCs
from impact_lightning.metrics.precision_at_k import Precision
from impact_lightning.metrics.ratio import ratio
from impact_lightning.neurons.layers import Layer

PERMUTED = "labels permuted among images"
EXACT = f"{PERMUTED}, exact expectation"
NO_LABELS = "labels have no part in it"


@dataclass(frozen=True)
class Measure:
    """A measure and its null.

    Args:
        values: Of each class and layer `(C, L)`, or of each unit `(K,)`.
        null: The same where there is nothing to find: of the same shape, of the null units `(M,)`, or one number `()`;
            None where labels have no part in the measure.
        how: What the null is.
        error: How far each value may be off, of the shape of values; None where values are exact.
    """

    values: Tensor
    null: Tensor | None = None
    how: str = NO_LABELS
    error: Tensor | None = None

    @property
    def is_of_units(self) -> bool:
        """Whether values are of units."""
        return self.values.ndim == 1

    def cpu(self) -> "Measure":
        """Return the measure in the memory of the CPU, float64."""
        null, error = (None if part is None else part.double().cpu() for part in (self.null, self.error))
        return replace(self, values=self.values.double().cpu(), null=null, error=error)


@dataclass(frozen=True)
class ClassMean:
    """A mean whose terms belong to classes: `Σ_c w_c sums_c / Σ_c w_c counts_c`, where class c is drawn w_c times.

    Terms that belong to no class are in every draw once.

    Args:
        sums: Sums of the terms of each class, and of those that belong to none, `(C + 1,)`.
        counts: How many terms these are, `(C + 1,)`.
    """

    sums: Tensor
    counts: Tensor

    @property
    def value(self) -> float:
        """The mean with every class once; nan without any term."""
        return float(ratio(self.sums.sum(), self.counts.sum()))

    def drawn(self, weights: Tensor) -> Tensor:
        """Return the mean in each draw of classes, `(R, C) -> (R,)`; nan in one without any term."""
        weights = F.pad(weights, (0, 1), value=1.0)
        return ratio(weights @ self.sums, weights @ self.counts)

    @property
    def n(self) -> int:
        """How many terms are defined."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class Measures:
    """Everything that is known of the units of a model, in the memory of the CPU.

    Args:
        layers: The layers.
        n_classes: Number of classes C.
        by_name: The measures.
        null_units: The units whose nulls were measured, `(M,)`.
        preferred: The class with the largest mean of each unit `(K,)`; -1 where there is none.
        auroc: AUROC of all classes and units, with certificates.
        top: The strongest images of each unit.
        own: The units that are each class's own, by layer `(C, k)`, numbers within the layer; -1 in free places.
        scores: Attribution patching of all classes and units, `(C, K)` float32.
        images: Number of images that were read.
    """

    layers: Sequence[Layer]
    n_classes: int
    by_name: dict[str, Measure]
    null_units: Tensor
    preferred: Tensor
    auroc: AUROCs = field(repr=False)
    top: Precision = field(repr=False)
    own: Sequence[Tensor] = field(repr=False)
    scores: Tensor = field(repr=False)
    images: int

    def mean(self, name: str, layers: Sequence[int]) -> tuple[ClassMean, ClassMean | None]:
        """Return the mean of a measure over some layers, and that of its null.

        A unit is a term of the class that it prefers, if there is one.

        Args:
            name: Name of the measure.
            layers: Which layers, by place.
        """
        measure = self.by_name[name]
        if measure.is_of_units:
            return self._of_units(measure, layers)
        values, classes = self._of_classes(measure, layers)
        if measure.null is None:
            return self._mean(values, classes), None
        null = measure.null.expand_as(measure.values)[:, layers]
        return self._mean(values, classes), self._mean(torch.where(values.isnan(), torch.nan, null), classes)

    def error(self, name: str, layers: Sequence[int]) -> float | None:
        """Return how far the mean of a measure over some layers may be off, None where it is exact."""
        measure = self.by_name[name]
        if measure.error is None:
            return None
        bound = Measure(torch.where(measure.values.isnan(), torch.nan, measure.error))
        mean = self._of_units(bound, layers)[0] if bound.is_of_units else self._mean(*self._of_classes(bound, layers))
        return mean.value

    def _of_classes(self, measure: Measure, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        values = measure.values[:, layers]  # (C, l)
        return values, torch.arange(self.n_classes)[:, None].expand_as(values)

    def _of_units(self, measure: Measure, layers: Sequence[int]) -> tuple[ClassMean, ClassMean | None]:
        chosen = torch.zeros(len(self.preferred), dtype=torch.bool)
        for layer in layers:
            chosen[self.layers[layer].of_units] = True
        mean = self._mean(measure.values[chosen], self.preferred[chosen])
        if measure.null is None:
            return mean, None
        if measure.null.ndim == 0:
            return mean, ClassMean(mean.counts * measure.null, mean.counts)
        among = chosen[self.null_units]
        return mean, self._mean(measure.null[among], self.preferred[self.null_units[among]])

    def _mean(self, values: Tensor, classes: Tensor) -> ClassMean:
        """Return the mean of values of any shape, each a term of its class; nan is none, and -1 no class."""
        is_term = ~values.isnan()
        owner = classes[is_term] % (self.n_classes + 1)  # -1 is the last place
        sums = torch.zeros(self.n_classes + 1, dtype=torch.float64).index_add_(0, owner, values[is_term])
        return ClassMean(sums, torch.bincount(owner, minlength=self.n_classes + 1).double())
