"""The first pass: class sums, histograms and gradients, which choose classes for units and units for classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from impact_lightning.metrics.class_means import ClassMeans
from impact_lightning.metrics.class_selectivity import ClassSelectivity
from impact_lightning.metrics.d_prime import DPrime
from impact_lightning.metrics.density import FiringDensity
from impact_lightning.metrics.eta_squared import EtaSquared, expected_eta_squared
from impact_lightning.metrics.gini import gini
from impact_lightning.metrics.kurtosis import Kurtosis
from impact_lightning.metrics.precision_at_k import Precision, PrecisionAtK
from impact_lightning.metrics.sparseness import LifetimeSparseness, sparseness
from impact_lightning.metrics.unit_bins import BinCounts
from impact_lightning.neurons.attribution_patching import AttributionPatching, Attributions
from impact_lightning.neurons.layers import Layer
from impact_lightning.neurons.measures import EXACT, PERMUTED, Measure
from impact_lightning.neurons.null import Labels, null_units

POPULATION = ("population_treves_rolls", "population_hoyer", "population_gini")


class First(NamedTuple):
    """What the first pass has found, over all ranks."""

    measures: dict[str, Measure]
    preferred: Tensor  # (K,) class of the largest mean of each unit, -1 where there is none
    null_preferred: Tensor  # (M,) the same of the null units under permuted labels
    attributions: Attributions
    top: Precision
    edges: Tensor  # (K, E)
    counts: Tensor  # (K, E + 1) images in each bin


class FirstPass(nn.Module):
    """Counts what a first look at all images tells of units.

    Args:
        layers: The layers of the units.
        labels: Labels of the images.
        n_classes: Number of classes.
        edges: Bin edges of each unit `(K, E)`.
        k: Images that precision at k looks at.
    """

    null_units: Tensor

    def __init__(self, layers: Sequence[Layer], labels: Labels, n_classes: int, edges: Tensor, k: int) -> None:
        super().__init__()
        n = layers[-1].of_units.stop
        self.layers = layers
        self.labels = labels
        self.register_buffer("null_units", null_units(layers))
        m = len(self.null_units)
        self.patching = AttributionPatching(layers, n_classes)
        self.selectivity, self.selectivity_null = ClassSelectivity(n, n_classes), ClassSelectivity(m, n_classes)
        both: dict[str, Metric | MetricCollection]  # of the same sums
        both = {"d_prime": DPrime(n, n_classes), "eta_squared": EtaSquared(n, n_classes)}
        self.sums, self.d_prime_null = MetricCollection(both, compute_groups=[list(both)]), DPrime(m, n_classes)
        self.top = PrecisionAtK(n, labels.true, k, permuted=labels.permuted)
        self.counts = BinCounts(edges)
        self.density = FiringDensity(n)
        self.kurtosis = Kurtosis(n)
        self.lifetime = LifetimeSparseness(n)
        self.population = ClassMeans(len(POPULATION) * len(layers), n_classes)

    def update(
        self,
        activations: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        pooled: Tensor,
        labels: Tensor,
        rows: Tensor,
    ) -> None:
        """Add a batch.

        Args:
            activations: On all tokens by site, `(B, T, n * w)`.
            gradients: Of each image's own logit by them.
            pooled: One activation of each unit, `(B, K)`.
            labels: Labels `(B,)`.
            rows: Rows of the images in the data set `(B,)`.
        """
        self.patching.update(activations, gradients, labels)
        self.update_pooled(pooled, labels, rows)

    def update_pooled(self, x: Tensor, labels: Tensor, rows: Tensor) -> None:
        """Add pooled activations `(B, K)`, labels and rows of images `(B,)`."""
        null, permuted = x[:, self.null_units], self.labels.without_meaning(rows)
        self.selectivity.update(x, labels)
        self.selectivity_null.update(null, permuted)
        self.sums.update(x, labels)
        self.d_prime_null.update(null, permuted)
        self.top.update(x, rows)
        self.counts.update(x)
        self.density.update(x.clamp_min(0))
        self.kurtosis.update(x)
        self.lifetime.update(x)
        self.population.update(torch.cat([_population(x[:, layer.of_units]) for layer in self.layers], 1), labels)

    def compute(self) -> First:
        """Return what was found; all ranks call this together."""
        selectivity, selectivity_null = self.selectivity.compute(), self.selectivity_null.compute()
        sums, top, attributions = self.sums.compute(), self.top.compute(), self.patching.compute()
        lifetime, density = self.lifetime.compute(), self.density.compute().density
        images = attributions.images
        chance = torch.tensor(expected_eta_squared(int(images.sum()), int((images > 0).sum())), dtype=torch.float64)
        population = self.population.compute().unflatten(1, (len(self.layers), len(POPULATION))).unbind(2)  # (C, L)
        measures = {
            "class_selectivity": Measure(selectivity.index, selectivity_null.index, PERMUTED),
            "precision_at_k": Measure(top.precision, top.null[self.null_units], PERMUTED),
            "d_prime_best": Measure(best(sums["d_prime"]), best(self.d_prime_null.compute()), PERMUTED),
            "eta_squared": Measure(sums["eta_squared"].eta_squared, chance, EXACT),
            "lifetime_treves_rolls": Measure(lifetime.treves_rolls),
            "lifetime_hoyer": Measure(lifetime.hoyer),
            "kurtosis": Measure(self.kurtosis.compute()),
            "density": Measure(density),
            "dead": Measure((density == 0).double()),
            **{name: Measure(values) for name, values in zip(POPULATION, population, strict=True)},
        }
        return First(
            measures=measures,
            preferred=selectivity.best,
            null_preferred=selectivity_null.best,
            attributions=attributions,
            top=top,
            edges=self.counts.edges,
            counts=self.counts.compute(),
        )


def _population(x: Tensor) -> Tensor:
    """Return how sparsely each image activates a layer's units, `(B, n) -> (B, 3)`; nan where none is active."""
    r = x.double().relu()
    return torch.stack([*sparseness(r.sum(1), (r**2).sum(1), r.shape[1]), gini(x)], 1)


def best(table: Tensor) -> Tensor:
    """Return the largest value of each unit over classes, `(C, K) -> (K,)`; nan where none is defined."""
    largest = table.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(0)
    return torch.where(largest == -torch.inf, torch.nan, largest)
