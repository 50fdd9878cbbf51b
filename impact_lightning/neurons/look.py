"""The look of figures of units: what measures are called, the colours of models, small print."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from impact_lightning.neurons.layers import Kind
from impact_lightning.neurons.measures import EXACT, PERMUTED, Measures
from impact_lightning.types import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, PALE = "#1a1a1a", "#666666", "#c4c4c4"
HIGHER, LOWER = "higher: more selective", "lower: more selective"
READABLE: dict[str, tuple[str, str]] = {  # names of measures, and what more of them means
    "ablation_impact": ("ablation impact", HIGHER),
    "selectivity": ("selectivity (AUROC)", HIGHER),
    "class_variance": ("class variance (σ/μ)", LOWER),
    "label_entropy": ("label entropy (nats)", LOWER),
    "class_selectivity": ("class selectivity index", HIGHER),
    "precision_at_k": ("precision at k", HIGHER),
    "d_prime_best": ("d′ of the best class", HIGHER),
    "eta_squared": ("η²", HIGHER),
    "auroc_best": ("AUROC of the best class", HIGHER),
    "informedness": ("informedness", HIGHER),
    "average_precision": ("average precision", HIGHER),
    "class_information": ("class information (nats)", HIGHER),
    "lifetime_treves_rolls": ("lifetime sparseness, Treves–Rolls", "higher: sparser"),
    "lifetime_hoyer": ("lifetime sparseness, Hoyer", "higher: sparser"),
    "lifetime_gini": ("lifetime sparseness, Gini", "higher: sparser"),
    "kurtosis": ("excess kurtosis", "higher: heavier tails"),
    "density": ("share of images that activate", "lower: sparser"),
    "dead": ("share of dead units", "higher: more never activate"),
    "population_treves_rolls": ("population sparseness, Treves–Rolls", "higher: sparser"),
    "population_hoyer": ("population sparseness, Hoyer", "higher: sparser"),
    "population_gini": ("population sparseness, Gini", "higher: sparser"),
}


def readable(name: str) -> tuple[str, str]:
    """Return how a measure is called for people, and what more of it means where that is known."""
    return READABLE.get(name, (name.replace("_", " "), ""))


def blocks_of(measures: Iterable[Measures], kind: Kind) -> list[int]:
    """Return the blocks in which any of the models has a layer of this kind."""
    blocks = sorted({layer.block for one in measures for layer in one.layers if layer.kind == kind})
    if not blocks:
        raise UserError(f"there is nothing to draw: no layer of {kind}s was measured")
    return blocks


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each model, in an order that the eye and the colour-blind see; none is pale on white."""
    from matplotlib import colormaps, colors

    shades = np.linspace(0.0, 0.82, len(names)) if len(names) > 1 else np.array([0.25])
    return {name: colors.to_hex(colormaps["plasma"](shade)) for name, shade in zip(names, shades, strict=True)}


def label(name: str, limit: int = 28) -> str:
    """Return the name of a model on one line, a long one shortened in the middle."""
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit - limit // 2 - 1) :]}"


def said_of_nulls(measures: Mapping[str, Measures], names: Iterable[str]) -> str:
    """Return what the nulls of some measures are: permuted labels, and what is otherwise."""
    others: dict[str, list[str]] = {}
    for name in names:
        found = [one.by_name[name] for one in measures.values() if name in one.by_name]
        if found and found[0].null is not None and found[0].how not in (PERMUTED, EXACT):
            others.setdefault(found[0].how, []).append(readable(name)[0])
    return "; ".join([PERMUTED, *(f"of {', '.join(which)}: {how}" for how, which in others.items())])


def footer(figure: "Figure", text: str) -> None:
    """Write small print below a figure, which keeps its room."""
    columns = max(40, int(figure.get_figwidth() * 17))  # letters that fit
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, columns)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=GREY, parse_math=False)
