"""A forest plot: every effect of a level as a point with its interval, beside the null and the margin."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from impact_lightning.neurons.look import GREY, INK, label
from impact_lightning.report.figures import Plate, plates, style, svg
from impact_lightning.report.words import measure_name
from impact_lightning.suite.outcome import Effect, Verdict

MOST = 60  # lines that can be read
LINE = 0.21  # inches
CAPTION = (
    "Points right of the dashed null line are easier to understand. The grey band is the margin below which effects "
    "are called the same. An effect is a share of what the reference has beyond chance, or where it has nothing, the "
    "model; where chance is not subtracted, of its value; of a ratio it is the logarithm. "
    "A filled point is a judgement, a hollow one is not."
)


class Bar(NamedTuple):
    """An effect so that more to the right is easier to understand; a share, or of a ratio a logarithm."""

    effect: float
    low: float
    high: float


def bar(effect: Effect) -> Bar:
    """Return where an effect and its interval are drawn; nan where they have no place.

    Example:
        >>> one = Effect("m", "", "less", 1.0, 2.0, -1.0, -1.5, -0.5, 0.0, "", -0.5, 0.1, 0.01, "easier")
        >>> bar(one)
        Bar(effect=0.5, low=0.25, high=0.75)
    """
    side = 1.0 if effect.better == "more" else -1.0
    if effect.null == 1.0:  # a ratio
        off = effect.effect - _log(effect.difference)
        ends = [side * (_log(end) + off) for end in (effect.low, effect.high)]
    else:
        unit = effect.effect / effect.difference if effect.difference else math.nan
        ends = [side * end * unit for end in (effect.low, effect.high)]
    if not all(math.isfinite(end) for end in ends):
        return Bar(side * effect.effect, math.nan, math.nan)
    return Bar(side * effect.effect, min(ends), max(ends))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def forest(name: str, title: str, verdicts: Sequence[Verdict], colours: Mapping[str, str]) -> Markup:
    """Return the plot of a level; nothing where it has no effects.

    Args:
        name: Name of the level.
        title: Its title.
        verdicts: One for each model.
        colours: Of models.
    """
    from matplotlib.figure import Figure

    lines = _lines(verdicts)[:MOST]
    if not lines:
        return Markup()
    with style():
        figure = Figure(figsize=(7.4, 1.15 + LINE * len(lines)), layout="constrained")
        axes = figure.subplots()
        for place, (model, effect) in enumerate(lines):
            _line(axes, -place, effect, colours.get(model, INK))
        axes.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_yticks(range(0, -len(lines), -1), [_said(model, effect) for model, effect in lines], fontsize=8)
        axes.set_ylim(-len(lines) + 0.4, 0.6)
        axes.margins(x=0.08)
        axes.set_xlabel("← harder  ·  effect  ·  easier →")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    picture = svg(figure, f"forest-{name}", f"{title}: effects with intervals; right of the dashed line is easier.")
    return plates(Plate(f"effects-{name}", picture, CAPTION))


def _lines(verdicts: Sequence[Verdict]) -> list[tuple[str, Effect]]:
    """Return effects by measure, models of a measure beneath each other."""
    found = [(verdict.model, effect) for verdict in verdicts for effect in verdict.effects]
    order = list(dict.fromkeys((effect.measure, effect.of) for _, effect in found))
    return sorted(found, key=lambda pair: order.index((pair[1].measure, pair[1].of)))  # stable: models keep theirs


def _line(axes: Any, y: float, effect: Effect, colour: str) -> None:
    one = bar(effect)
    if math.isfinite(effect.margin):
        axes.fill_betweenx([y - 0.5, y + 0.5], -effect.margin, effect.margin, color="#e4e4e4", linewidth=0)
    if not math.isfinite(one.effect):
        text = "no effect size: neither is beyond chance"
        look = {"fontsize": 7, "color": GREY, "va": "center", "bbox": {"facecolor": "white", "linewidth": 0, "pad": 1}}
        axes.text(0.01, y, text, transform=axes.get_yaxis_transform(), **look)
        return
    if math.isfinite(one.low):
        axes.plot([one.low, one.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    filled = effect.judgement in ("easier", "harder")
    axes.plot(one.effect, y, "o", color=colour, markerfacecolor=colour if filled else "white", markersize=5)


def _said(model: str, effect: Effect) -> str:
    of = f", {label(effect.of, 24)}" if effect.of else ""
    return f"{measure_name(effect.measure)}{of}: {label(model, 20)}"
