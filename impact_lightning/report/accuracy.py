"""Accuracy against sparsity: what was paid for the zeros."""

import math
from pathlib import Path

from impact_lightning.neurons.look import INK, label
from impact_lightning.report.figures import Plate, colours, plates, style, svg, tidy
from impact_lightning.report.section import Section
from impact_lightning.report.words import percent
from impact_lightning.suite.outcome import Model, Outcome

CAPTION = (
    "Top-1 accuracy on the test images against the share of zeros in the linear layers of the blocks. A model that has "
    "become easier to understand, but knows less, is not the same model made clearer."
)


def section(outcome: Outcome, folder: Path) -> Section:
    """Return the figure of accuracy against sparsity.

    Args:
        outcome: What was found.
        folder: The folder of the run; nothing is read from it.
    """
    shown = [m for m in outcome.models if math.isfinite(m.sparsity) and math.isfinite(m.top1)]
    without = [m.name for m in outcome.models if m not in shown]
    gaps = (f"accuracy or sparsity is not known of {', '.join(without)}",) if without else ()
    figures = [_plate(outcome, shown)] if shown else []
    return Section("accuracy", "Accuracy against sparsity", plates(*figures), gaps=gaps)


def _plate(outcome: Outcome, shown: list[Model]) -> Plate:
    from matplotlib.figure import Figure

    colour = colours(outcome)
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for model in shown:
            is_reference = model.reference == model.name
            x, y = 100 * model.sparsity, 100 * model.top1
            axes.plot(x, y, "D" if is_reference else "o", color=colour[model.name], markersize=7)
            axes.annotate(label(model.name, 20), (x, y), (6, 5), textcoords="offset points", fontsize=8, color=INK)
        axes.set(xlabel="zeros, %", ylabel="top-1, %")
        axes.margins(x=0.12, y=0.15)
        tidy(axes)
    rows = [
        [m.name, m.kind, str(m.seed), m.reference, percent(m.sparsity), percent(m.top1)] for m in outcome.models
    ]  # fmt: skip
    picture = svg(
        figure, "accuracy-points", "Accuracy against sparsity of each model; the numbers are in the table below."
    )
    return Plate(
        "accuracy-points", picture, CAPTION, ("model", "how it was made", "seed", "reference", "zeros", "top-1"), rows
    )
