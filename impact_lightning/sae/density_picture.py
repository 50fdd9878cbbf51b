"""How often latents fire, and how many at once, as a picture."""

import math
from typing import Any, BinaryIO

import numpy as np

from impact_lightning.data.pictures import drawing
from impact_lightning.metrics.density import BINS_PER_DECADE, DECADES, log_histogram
from impact_lightning.sae.features import Features
from impact_lightning.sae.gallery import BLUE, GREY, percent, plain


def draw_densities(file: BinaryIO, features: Features, name: str) -> None:
    """Write histograms of log10 densities and of L0 as SVG, with the number of dead latents and of tokens."""
    from matplotlib.figure import Figure

    n, dead = len(features.density), int((features.density == 0).sum())
    n_tokens = int(features.active.sum())
    with drawing():
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _densities(left, features, n_tokens)
        _active(right, features)
        said = f"{dead:,} of {n:,} latents ({percent(dead / n)}) are dead: they fire on none of {n_tokens:,} tokens"
        left.set_title(f"{plain(name, 70)}\n{said}", loc="left", fontsize=10, parse_math=False)
        figure.savefig(file, format="svg", metadata={"Date": None})


def _densities(axes: Any, features: Features, n_tokens: int) -> None:
    edges = np.linspace(-DECADES, 0, DECADES * BINS_PER_DECADE + 1)
    least = -math.log10(max(n_tokens, 10))
    axes.stairs(log_histogram(features.density).numpy(), edges, fill=True, color=BLUE)
    _say(axes, "1 token", least)
    axes.set_xlim(max(-DECADES, math.floor(least)) - 0.05, 0.05)
    axes.set_xticks(range(max(-DECADES, math.floor(least)), 1))
    axes.set(xlabel="log₁₀ of the share of tokens on which a latent fires", ylabel="latents")
    _tidy(axes)


def _active(axes: Any, features: Features) -> None:
    counts = features.active.numpy()
    last = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
    mean = float((counts * np.arange(len(counts))).sum() / max(1, counts.sum()))
    axes.stairs(counts[: last + 1], np.arange(last + 2) - 0.5, fill=True, color=BLUE)
    _say(axes, f"mean {mean:.2f}", mean)
    axes.set(xlabel="latents that fire on a token (L0)", ylabel="tokens")
    _tidy(axes)


def _say(axes: Any, text: str, x: float) -> None:
    """Mark a place with a line and a word."""
    axes.axvline(x, color=GREY, linestyle=(0, (2, 2)), linewidth=1)
    where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(text, (x, 1), (4, -4), va="top", color=GREY, **where)


def _tidy(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.spines[["top", "right"]].set_visible(False)
