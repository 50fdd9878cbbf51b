"""The slow truth: every measure of units from stored activations, by scikit-learn, scipy and loops of numpy.

Models are read by plain hooks of torch; nothing here is shared with what is tested.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch  # noqa: F401  # before sklearn: typing caches its `float | int`, and 1 batch would be 1.0, all
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.feature_selection import f_classif
from sklearn.metrics import average_precision_score, mutual_info_score, roc_auc_score
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

Array = NDArray[Any]
Edit = Callable[[Tensor], Tensor]
Kind = Literal["head", "neuron"]
Statistic = Callable[[Array, Array], float]  # of one unit's activations (N,), and labels (N,) or a class's images


@dataclass(frozen=True)
class Site:
    """The units of one kind in one block: `n` of them, with `w` channels each."""

    block: int
    kind: Kind
    n: int
    w: int

    def hooked(self, model: VisionTransformer, edit: Edit) -> Any:
        """Let `edit` act on what the units write; as a hook that can be removed."""
        block: Any = model.blocks[self.block]
        if self.kind == "head":
            return block.attn.proj.register_forward_pre_hook(lambda _, args: (edit(args[0]),))
        return block.mlp.act.register_forward_hook(lambda _, _args, out: edit(out))

    def channels(self, unit: int) -> slice:
        return slice(unit * self.w, (unit + 1) * self.w)

    def sizes(self, x: Array) -> Array:
        """Return activations of units, `(..., n w) -> (..., n)`."""
        return x if self.kind == "neuron" else np.sqrt((x.reshape(*x.shape[:-1], self.n, self.w) ** 2).sum(-1))


def sites(model: VisionTransformer) -> list[Site]:
    """Return all sites of a model, in the order of execution."""
    found = []
    for number, block in enumerate(model.blocks):
        parts: Any = block
        width, n = parts.attn.proj.in_features, parts.attn.num_heads
        found += [Site(number, "head", n, width // n), Site(number, "neuron", parts.mlp.fc1.out_features, 1)]
    return found


@dataclass(frozen=True)
class Truth:
    """A measure: of classes and layers `(C, L)` or of units `(K,)`; and its null, one number or the same shape."""

    values: Array
    null: Array | float | None = None


@dataclass(frozen=True)
class Study:
    """What is measured.

    Args:
        model: The model, in float64.
        images: The images, `(N, 3, h, w)`.
        labels: Their labels, `(N,)`.
        permuted: Labels without meaning, `(N,)`.
        other: Another class for each class, `(C,)`.
        pooling: Of `cls`, `patch_max`, `patch_mean`.
        top: How many heads and neurons of a layer are a class's own.
        support: Whether they are those that support it most, rather than those of the largest effect of either sign.
        impact_images: Images of each class on which units are ablated.
        k: Images of precision at k.
    """

    model: VisionTransformer
    images: Tensor
    labels: Array
    permuted: Array
    other: Array
    pooling: str
    top: dict[Kind, int]
    support: bool
    impact_images: int
    k: int

    @property
    def n_classes(self) -> int:
        return len(self.other)


@torch.no_grad()
def logits_of(study: Study, rows: Sequence[int], edits: Sequence[tuple[Site, Edit]]) -> Array:
    """Return logits `(n, C)` of some images."""
    with ExitStack() as stack:
        for site, edit in edits:
            stack.callback(site.hooked(study.model, edit).remove)
        logits: Array = study.model(study.images[rows]).numpy()
    return logits


def activations(study: Study) -> list[Array]:
    """Return what each site holds, `(N, T, n w)`."""
    found: list[Array] = []

    def keep(x: Tensor) -> Tensor:
        found.append(x.numpy().copy())
        return x

    logits_of(study, range(len(study.images)), [(site, keep) for site in sites(study.model)])
    return found


def pooled(study: Study, how: str) -> Array:
    """Return an activation of each image and unit `(N, K)`, in float64 but with the precision of float32."""
    columns = []
    for site, stored in zip(sites(study.model), activations(study), strict=True):
        x = site.sizes(stored)  # (N, T, n)
        columns.append({"cls": x[:, 0], "patch_max": x[:, 1:].max(1), "patch_mean": x[:, 1:].mean(1)}[how])
    return np.concatenate(columns, 1).astype(np.float32).astype(np.float64)


def attributions(study: Study) -> Array:
    """Return scores `(C, K)`: the derivative of a class's logit as a unit begins to move to its mean, on all tokens."""
    labels = torch.from_numpy(study.labels)
    columns = []
    for site, stored in zip(sites(study.model), activations(study), strict=True):
        means = torch.from_numpy(stored.mean((0, 1)))
        for unit in range(site.n):
            share = torch.zeros(len(labels), 1, 1, dtype=torch.float64, requires_grad=True)
            hook = site.hooked(study.model, moved(site.channels(unit), means, share))
            own = study.model(study.images).gather(1, labels[:, None]).sum()
            hook.remove()
            slopes = torch.autograd.grad(own, share)[0].flatten().numpy()
            columns.append(by_class(slopes, study.labels, study.n_classes))
    return np.stack(columns, 1)


def slopes_by_five_points(study: Study, site: Site, unit: int, step: float = 1e-3) -> Array:
    """Return the same for one unit `(C,)` without any gradient, with an error of fourth order."""
    means = torch.from_numpy(activations(study)[sites(study.model).index(site)].mean((0, 1)))
    rows = np.arange(len(study.labels))
    slopes = np.zeros(len(rows))
    for weight, steps in ((8, 1), (-8, -1), (-1, 2), (1, -2)):
        logits = logits_of(
            study, rows.tolist(), [(site, moved(site.channels(unit), means, torch.tensor(steps * step)))]
        )
        slopes += weight * logits[rows, study.labels] / (12 * step)
    return by_class(slopes, study.labels, study.n_classes)


def moved(at: slice, means: Tensor, share: Tensor) -> Edit:
    """Return an edit that moves some channels by a share of the way to their means."""

    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., at] = x[..., at] + share * (means[at] - x[..., at])
        return x

    return edit


def by_class(values: Array, labels: Array, n_classes: int) -> Array:
    """Return the mean of each class, nan without any."""
    parts = [values[labels == c] for c in range(n_classes)]
    return np.array([part.mean() if len(part) else np.nan for part in parts])


def own_units(study: Study, scores: Array) -> list[list[list[int]]]:
    """Return the units of each site that are each class's own, by site and class; none of a class without images."""
    found, start = [], 0
    for site in sites(study.model):
        own = []
        sizes = -scores if study.support else np.abs(scores)
        for row in sizes[:, start : start + site.n].tolist():
            order = sorted((unit for unit in range(site.n) if row[unit] > 0), key=lambda unit: (-row[unit], unit))
            own.append(order[: study.top[site.kind]])
        found.append(own)
        start += site.n
    return found


def impacts(study: Study, own: list[list[list[int]]], whose: Array) -> Array:
    """Return ablation impact `(C, L)`, where images of class c lose the units of `whose[c]`; nan if it has none."""
    table = np.full((study.n_classes, len(own)), np.nan)
    stored = activations(study)
    for c in range(study.n_classes):
        rows = np.flatnonzero(study.labels == c)[: study.impact_images].tolist()
        if not rows:
            continue
        clean = logits_of(study, rows, [])
        for number, site in enumerate(sites(study.model)):
            if not own[number][whose[c]]:
                continue
            means = torch.from_numpy(stored[number].mean((0, 1)))
            edits = [(site, moved(site.channels(unit), means, torch.tensor(1.0))) for unit in own[number][whose[c]]]
            ablated = logits_of(study, rows, edits)
            falls = (clean[:, c] - ablated[:, c]) / np.sqrt((clean**2).sum(1))
            table[c, number] = falls.mean()
    return table


# ------------------------------------------------------------------------------------------------- of one unit


def variance(x: Array) -> float:
    return 0.0 if np.ptp(x) == 0 else float(np.var(x))


def auroc(x: Array, is_class: Array) -> float:
    return float(roc_auc_score(is_class, x)) if 0 < is_class.sum() < len(x) else np.nan


def d_prime(x: Array, is_class: Array) -> float:
    own, rest = x[is_class], x[~is_class]
    if min(len(own), len(rest)) < 2 or variance(own) + variance(rest) == 0:
        return np.nan
    return float((own.mean() - rest.mean()) / np.sqrt((variance(own) + variance(rest)) / 2))


def class_variance(x: Array, is_class: Array) -> float:
    own, spread = x[is_class], np.sqrt(variance(x))
    if len(own) < 2 or spread == 0 or abs(own.mean()) < 1e-3 * spread:
        return np.nan
    return float(np.sqrt(variance(own)) / own.mean())


def best_of(statistic: Statistic, n_classes: int) -> Statistic:
    """Return the largest value of a statistic over classes."""

    def best(x: Array, labels: Array) -> float:
        values = [statistic(x, labels == c) for c in range(n_classes)]
        defined = [value for value in values if not np.isnan(value)]
        return max(defined, default=np.nan)

    return best


def selectivity(x: Array, labels: Array) -> tuple[float, int]:
    """Return the class selectivity index of rectified activations, and the class of the largest mean."""
    x = np.maximum(x, 0)
    classes = np.unique(labels)
    means = [x[labels == c].mean() for c in classes]
    if not x.any() or len(classes) < 2:
        return np.nan, -1
    first = int(np.argmax(means))
    rest = float(np.mean([mean for place, mean in enumerate(means) if place != first]))
    return float((means[first] - rest) / (means[first] + rest + 1e-7)), int(classes[first])


def eta_squared(x: Array, labels: Array) -> float:
    n, classes = len(x), len(np.unique(labels))
    if np.ptp(x) == 0 or classes < 2:
        return np.nan
    f = float(f_classif(x[:, None], labels)[0][0])
    return f * (classes - 1) / (f * (classes - 1) + n - classes)


def information(x: Array, labels: Array, threshold: float) -> float:
    fires = x > threshold
    is_undefined = fires.all() or not fires.any() or len(np.unique(labels)) < 2
    return np.nan if is_undefined else float(mutual_info_score(labels, fires))


def entropy(x: Array, labels: Array) -> float:
    means = np.maximum([x[labels == c].mean() for c in np.unique(labels)], 0)
    return float(stats.entropy(means)) if means.any() and len(means) > 1 else np.nan


def informedness(x: Array, is_class: Array) -> float:
    if not 0 < is_class.sum() < len(x):
        return np.nan
    return float(stats.ks_2samp(x[is_class], x[~is_class], alternative="less", method="asymp").statistic)


def average_precision(x: Array, is_class: Array) -> float:
    return float(average_precision_score(is_class, x)) if is_class.any() else np.nan


def precision(x: Array, labels: Array, k: int, of: Array) -> float:
    """Return precision at k of the strongest images; `of` says which label they are taken to have."""
    order = sorted(range(len(x)), key=lambda row: (-x[row], row))[:k]
    return float(np.bincount(of[order]).max() / len(order))


def treves_rolls(x: Array) -> float:
    r = np.maximum(x, 0)
    return float((1 - r.mean() ** 2 / (r**2).mean()) / (1 - 1 / len(r))) if r.any() else np.nan


def hoyer(x: Array) -> float:
    r, root = np.maximum(x, 0), np.sqrt(len(x))
    return float((root - r.sum() / np.linalg.norm(r)) / (root - 1)) if r.any() else np.nan


def gini(x: Array) -> float:
    """Return half of the mean difference of two, in units of the mean."""
    r = np.maximum(x, 0)
    return float(np.abs(r[:, None] - r).mean() / (2 * r.mean())) if r.any() else np.nan


def kurtosis(x: Array) -> float:
    return np.nan if np.ptp(x) == 0 else float(stats.kurtosis(x))


# ----------------------------------------------------------------------------------------------------- the whole


def preferred(x: Array, labels: Array) -> list[int]:
    return [selectivity(column, labels)[1] for column in x.T]


def table(statistic: Statistic, x: Array, labels: Array, n_classes: int) -> Array:
    """Return a statistic of each class and unit, `(C, K)`."""
    return np.array([[statistic(column, labels == c) for column in x.T] for c in range(n_classes)])


def truth(study: Study) -> dict[str, Truth]:
    """Return all measures and their nulls."""
    x, peaks = pooled(study, study.pooling), pooled(study, "patch_max")
    labels, permuted, n_classes = study.labels, study.permuted, study.n_classes
    own = own_units(study, attributions(study))

    def of_units(statistic: Statistic) -> Truth:
        return Truth(*(np.array([statistic(column, given) for column in x.T]) for given in (labels, permuted)))

    def of_preferred(statistic: Statistic) -> Truth:
        parts = []
        for given in (labels, permuted):
            chosen = preferred(x, given)
            pairs = zip(x.T, chosen, strict=True)
            parts.append(np.array([statistic(column, given == c) if c >= 0 else np.nan for column, c in pairs]))
        return Truth(*parts)

    def of_own(values: Array) -> Array:
        """Return the mean over each class's own units, `(C, K) -> (C, L)`."""
        means = np.full((n_classes, len(own)), np.nan)
        starts = np.cumsum([0, *(site.n for site in sites(study.model))])
        for number, by_class in enumerate(own):
            for c, units in enumerate(by_class):
                found = [values[c, starts[number] + unit] for unit in units]
                defined = [value for value in found if not np.isnan(value)]
                means[c, number] = np.mean(defined) if defined else np.nan
        return means

    def alone(statistic: Callable[[Array], float]) -> Truth:
        return Truth(np.array([statistic(column) for column in x.T]))

    def of_population(statistic: Callable[[Array], float]) -> Truth:
        means = np.full((n_classes, len(own)), np.nan)
        starts = np.cumsum([0, *(site.n for site in sites(study.model))])
        for number in range(len(own)):
            scores = np.array([statistic(row[starts[number] : starts[number + 1]]) for row in x])
            for c in range(n_classes):
                defined = scores[(labels == c) & ~np.isnan(scores)]
                means[c, number] = defined.mean() if len(defined) else np.nan
        return Truth(means)

    kinds = [site.kind for site in sites(study.model) for _ in range(site.n)]
    bars = [
        np.sort(column)[(len(x) - 1) // 2] if kind == "head" else 0.0 for column, kind in zip(x.T, kinds, strict=True)
    ]
    informations = [
        np.array([information(column, given, bar) for column, bar in zip(x.T, bars, strict=True)])
        for given in (labels, permuted)
    ]
    entropies = [np.array([entropy(column, given) for column in peaks.T]) for given in (labels, permuted)]
    chance = (len(np.unique(labels)) - 1) / (len(labels) - 1)
    return {
        "ablation_impact": Truth(impacts(study, own, np.arange(n_classes)), impacts(study, own, study.other)),
        "selectivity": Truth(of_own(table(auroc, x, labels, n_classes)), 0.5),
        "class_variance": Truth(*(of_own(table(class_variance, peaks, y, n_classes)) for y in (labels, permuted))),
        "label_entropy": Truth(*(of_own(np.broadcast_to(row, (n_classes, len(row)))) for row in entropies)),
        "auroc_best": of_units(best_of(auroc, n_classes)),
        "d_prime_best": of_units(best_of(d_prime, n_classes)),
        "class_selectivity": of_units(lambda column, given: selectivity(column, given)[0]),
        "class_information": Truth(*informations),
        "eta_squared": Truth(of_units(eta_squared).values, chance),
        "precision_at_k": of_units(lambda column, given: precision(column, labels, study.k, given)),
        "informedness": of_preferred(informedness),
        "average_precision": of_preferred(average_precision),
        "lifetime_treves_rolls": alone(treves_rolls),
        "lifetime_hoyer": alone(hoyer),
        "lifetime_gini": alone(gini),
        "kurtosis": alone(kurtosis),
        "density": alone(lambda column: float((column > 0).mean())),
        "dead": alone(lambda column: float(not (column > 0).any())),
        "population_treves_rolls": of_population(treves_rolls),
        "population_hoyer": of_population(hoyer),
        "population_gini": of_population(gini),
    }


def with_relu(model: VisionTransformer) -> VisionTransformer:
    """Replace the activation of every MLP by a ReLU: many activations are then the same, zero."""
    for block in model.blocks:
        parts: Any = block
        parts.mlp.act = nn.ReLU()
    return model
