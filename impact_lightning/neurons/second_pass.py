"""The second pass: ranks, ablations, and measures of what the first pass has chosen."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from impact_lightning.metrics.auroc import AUROCs, UnitAUROC
from impact_lightning.metrics.class_entropy import ClassEntropy
from impact_lightning.metrics.class_information import ClassInformation
from impact_lightning.metrics.class_variance import ClassVariance
from impact_lightning.metrics.detection import Detection
from impact_lightning.metrics.gini import LifetimeGini
from impact_lightning.metrics.unit_bins import SecondPass as OnBins
from impact_lightning.neurons.ablation import AblationImpact, top_units
from impact_lightning.neurons.first_pass import First, best
from impact_lightning.neurons.layers import Layer
from impact_lightning.neurons.measures import EXACT, PERMUTED, Measure
from impact_lightning.neurons.null import Labels, null_units
from impact_lightning.neurons.own_variance import OwnVariance
from impact_lightning.neurons.settings import Settings

T = TypeVar("T", bound=OnBins)


class Second(NamedTuple):
    """What the second pass has found, over all ranks."""

    measures: dict[str, Measure]
    auroc: AUROCs


class SecondPass(nn.Module):
    """Counts what a second look at the same images tells, once classes and units have found each other.

    Args:
        layers: The layers of the units.
        labels: Labels of the images.
        n_classes: Number of classes.
        first: What the first pass has found.
        thresholds: Above which a unit counts as firing, `(K,)`.
        settings: What is measured.
    """

    null_units: Tensor
    columns: Tensor

    def __init__(
        self,
        layers: Sequence[Layer],
        labels: Labels,
        n_classes: int,
        first: First,
        thresholds: Tensor,
        settings: Settings,
    ) -> None:
        super().__init__()
        self.layers, self.labels = layers, labels
        n, edges, counts = layers[-1].of_units.stop, first.edges, first.counts
        self.register_buffer("null_units", null_units(layers))
        scores = first.attributions.scores
        self.own = [top_units(scores, layer, settings.top(layer), settings.ranking) for layer in layers]  # L x (C, k)
        columns = [torch.where(own < 0, 0, own + layer.units) for own, layer in zip(self.own, layers, strict=True)]
        self.register_buffer("columns", torch.cat(columns, 1))  # (C, M) among all units

        self.auroc = UnitAUROC(edges, counts, n_classes)
        self.detection = _alike(Detection(edges, counts, first.preferred), self.auroc)
        self.gini = _alike(LifetimeGini(edges, counts), self.auroc)
        null_edges, null_counts = edges[self.null_units], counts[self.null_units]
        self.auroc_null = UnitAUROC(null_edges, null_counts, n_classes)
        self.detection_null = _alike(Detection(null_edges, null_counts, first.null_preferred), self.auroc_null)
        bar, null_bar = thresholds, thresholds[self.null_units]
        self.information = ClassInformation(n, n_classes, threshold=bar)
        self.information_null = ClassInformation(len(self.null_units), n_classes, threshold=null_bar)
        both: dict[str, Metric | MetricCollection] = {
            "entropy": ClassEntropy(n, n_classes, squares=True),
            "variance": ClassVariance(n, n_classes),
        }
        self.peaks, self.entropy_null = MetricCollection(both, compute_groups=[list(both)]), ClassEntropy(n, n_classes)
        self.variance_null = OwnVariance(self.columns, n)
        self.impact, self.impact_null = (AblationImpact(layers, n_classes) for _ in range(2))

    def update(self, x: Tensor, peaks: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Add activations `(B, K)`, their largest ones on patches `(B, K)`, labels and rows of images `(B,)`."""
        permuted = self.labels.without_meaning(rows)
        ranked = self.auroc.ranked(x)
        null = ranked.of(self.null_units)
        self.auroc.update(ranked, labels)
        self.auroc_null.update(null, permuted)
        self.detection.update(ranked, labels)
        self.detection_null.update(null, permuted)
        self.gini.update(ranked)
        self.information.update(ranked.values, labels)
        self.information_null.update(null.values, permuted)
        self.peaks.update(peaks, labels)
        self.entropy_null.update(peaks, permuted)
        self.variance_null.update(peaks, permuted)

    def compute(self) -> Second:
        """Return what was found; all ranks call this together."""
        auroc, detection, detection_null = self.auroc.compute(), self.detection.compute(), self.detection_null.compute()
        peaks, columns = self.peaks.compute(), self.columns
        variance, entropy = peaks["variance"].gather(1, columns), peaks["entropy"][columns]  # (C, M)
        gini, half = self.gini.compute(), auroc.auroc.new_tensor(0.5)
        selectivity = self._of_own(auroc.auroc.gather(1, columns))
        measures = {
            "ablation_impact": Measure(
                self.impact.compute(), self.impact_null.compute(), "another class's units are ablated"
            ),
            "selectivity": Measure(selectivity, half, EXACT, self._of_own(auroc.certificate[columns])),
            "class_variance": Measure(self._of_own(variance), self._of_own(self.variance_null.compute()), PERMUTED),
            "label_entropy": Measure(
                self._of_own(entropy), self._of_own(self.entropy_null.compute()[columns]), PERMUTED
            ),
            "auroc_best": Measure(
                best(auroc.auroc), best(self.auroc_null.compute().auroc), PERMUTED, auroc.certificate
            ),
            "informedness": Measure(
                detection.informedness, detection_null.informedness, PERMUTED, detection.informedness_error
            ),
            "average_precision": Measure(
                detection.average_precision, detection_null.average_precision, PERMUTED, detection.precision_error
            ),
            "class_information": Measure(self.information.compute(), self.information_null.compute(), PERMUTED),
            "lifetime_gini": Measure(gini.gini, error=gini.error),
        }
        return Second(measures, auroc)

    def _of_own(self, values: Tensor) -> Tensor:
        """Return the mean over a class's own units in each layer, `(C, M) -> (C, L)`; undefined ones are left out."""
        parts = values.split([own.shape[1] for own in self.own], dim=1)
        owned = [torch.where(own >= 0, part, torch.nan) for own, part in zip(self.own, parts, strict=True)]
        return torch.stack([part.nanmean(1) for part in owned], 1)


def _alike(metric: T, other: OnBins) -> T:
    """Return a metric on the same bins with the tables of another: each has a number for every bin of every unit."""
    metric.midranks, metric.widest = other.midranks, other.widest
    return metric
