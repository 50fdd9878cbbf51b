"""The first screen: for each level and model, whether it became easier to understand, by how much, beside its null."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from impact_lightning.report.figures import colours
from impact_lightning.report.forest import forest
from impact_lightning.report.section import Section, render
from impact_lightning.report.words import (
    LEVEL_TITLES,
    SIGNS,
    Sign,
    interval,
    measure_name,
    number,
    p_value,
    percent,
    several,
    signed,
)
from impact_lightning.suite.outcome import LEVELS, Effect, Model, Outcome, Verdict

SPARSER = 0.01  # share of the weights that are zero beyond those of the reference: less is not called sparser
COUNTED = {"easier": "easier", "harder": "harder", "same": "the same", "mixed": "mixed", "unsettled": "unsettled"}
EFFECT_HEAD = (
    "model", "measure", "of", "says", "difference", "95\u00a0% interval", "null", "effect", "margin", "p\u00a0(Holm)",
    "value", "reference", "easier if",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A measure as text: its name, and how much it differs beside its null."""

    measure: str
    size: str


@dataclass(frozen=True)
class Cell:
    """The answer of a level for a model, the measures that tell most of it, and how many measures say the same."""

    answer: str
    sign: Sign
    facts: Sequence[Fact] = ()
    count: str = ""


@dataclass(frozen=True)
class Level:
    """Everything that is said of a level."""

    name: str
    title: str
    cells: list[Cell]
    verdicts: list[Verdict]
    rows: list[list[str]]
    hows: list[str]
    forest: Markup


def section(outcome: Outcome, folder: Path) -> Section:
    """Return the first screen.

    Args:
        outcome: What was found.
        folder: The folder of the run; nothing is read from it.
    """
    models = [model for model in outcome.models if model.reference != model.name]
    levels = [_level(outcome, name, models) for name in LEVELS]
    html = render(
        "answers.html",
        sentence=sentence(outcome),
        models=[(model, facts(model)) for model in models],
        references=[(model, facts(model)) for model in outcome.models if model.reference == model.name],
        levels=levels,
        is_once=len({model.seed for model in outcome.models}) == 1,
        signs=SIGNS,
        head=EFFECT_HEAD,
        several=several,
    )
    return Section("answer", "Did sparsity make it easier to understand?", html)


def sentence(outcome: Outcome) -> str:
    """Return the answer to the question in one sentence, and in another what models say that are no sparser."""
    zeros = {model.name: model.sparsity for model in outcome.models}
    sparser = [v for v in outcome.verdicts if zeros.get(v.model, 0.0) > zeros.get(v.reference, 0.0) + SPARSER]
    others = [verdict for verdict in outcome.verdicts if verdict not in sparser]
    if not sparser:  # it is not about zeros, or they are not known
        sparser, others = others, []
    counts: Counter[str] = Counter(verdict.answer for verdict in sparser)
    given = sum(counts.values()) - counts["missing"]
    if not given:
        return "There is no answer: no level has compared a model with its reference."
    easier, harder, mixed = counts["easier"], counts["harder"], counts["mixed"]
    if easier == given:
        verdict = "Yes"
    elif mixed or (easier and harder):
        verdict = "It depends"
    elif easier:
        verdict = "In part"
    elif 2 * (harder + counts["same"]) > given:
        verdict = "No"
    else:
        verdict = "Not clearly"
    controls = f" Of models that are no sparser: {_counted(others)}." if others else ""
    return f"{verdict}. Of {several(given, 'answer')}: {_counted(sparser)}.{controls}"


def _counted(verdicts: Sequence[Verdict]) -> str:
    """Return how many answers are which, and of which levels those are that say easier or harder."""
    parts = []
    for answer, said in COUNTED.items():
        own = [verdict.level for verdict in verdicts if verdict.answer == answer]
        where = f" ({', '.join(LEVEL_TITLES[name] for name in LEVELS if name in own)})"
        parts += [f"{said} in {len(own)}{where if answer in ('easier', 'harder') else ''}"] if own else []
    n_missing = sum(verdict.answer == "missing" for verdict in verdicts)
    missing = [f"{n_missing} could not be given"] if n_missing else []
    return "; ".join([*([_listed(parts)] if parts else []), *missing])


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def facts(model: Model) -> str:
    """Return what is to be known of a model in a few words."""
    return f"{model.kind}; zeros {percent(model.sparsity)}; top-1 {percent(model.top1)}"


def _level(outcome: Outcome, name: str, models: list[Model]) -> Level:
    by_model = {verdict.model: verdict for verdict in outcome.verdicts if verdict.level == name}
    verdicts = [by_model[model.name] for model in models if model.name in by_model]
    title = LEVEL_TITLES[name]
    return Level(
        name=name,
        title=title,
        cells=[cell(by_model.get(model.name)) for model in models],
        verdicts=verdicts,
        rows=[effect_row(verdict.model, effect) for verdict in verdicts for effect in verdict.effects],
        hows=sorted({f"{measure_name(e.measure)}: {e.how}" for v in verdicts for e in v.effects}),
        forest=forest(name, title, verdicts, colours(outcome)),
    )


def cell(verdict: Verdict | None) -> Cell:
    """Return what stands in the table: the answer, and the first measure that gives it; of a mixed one, one of each."""
    if verdict is None or verdict.answer == "missing":
        return Cell("missing", SIGNS["missing"])
    wanted = ("easier", "harder") if verdict.answer == "mixed" else (verdict.answer,)
    telling = {one: [effect for effect in verdict.effects if effect.judgement == one] for one in wanted}
    shown = [own[0] for own in telling.values() if own] or verdict.effects[:1]
    facts = [
        Fact(f"{_named(one)}; {one.better} is easier", f"{said(one)}, null\u00a0{number(one.null)}") for one in shown
    ]
    counts = [
        str(len(own)) if len(wanted) == 1 else f"{SIGNS[one].sign}\u00a0{len(own)}" for one, own in telling.items()
    ]
    is_told = bool(verdict.effects) and verdict.answer != "unsettled"  # how many are not sure says little
    count = f"{' '.join(counts)} of {several(len(verdict.effects), 'measure')}" if is_told else ""
    return Cell(verdict.answer, SIGNS[verdict.answer], facts, count)


def said(effect: Effect) -> str:
    """Return how large an effect is, with its interval."""
    if is_ratio(effect):
        return f"×\u00a0{number(effect.difference)} ({interval(effect.low, effect.high)})"
    share = f", effect\u00a0{percent(effect.effect)}" if math.isfinite(effect.effect) else ""
    return f"{signed(effect.difference)} ({interval(effect.low, effect.high)}){share}"


def is_ratio(effect: Effect) -> bool:
    """Return whether a difference is a ratio, of which 1 is none."""
    return effect.null == 1.0


def _named(effect: Effect) -> str:
    name = measure_name(effect.measure)
    return f"{name}, {effect.of.replace('_', ' ')}" if effect.of else name


def effect_row(model: str, effect: Effect) -> list[str]:
    """Return a row of the table of effects."""
    return [
        model,
        measure_name(effect.measure),
        effect.of or "the model",
        f"{SIGNS[effect.judgement].sign}\u00a0{effect.judgement}",
        f"×\u00a0{number(effect.difference)}" if is_ratio(effect) else signed(effect.difference),
        interval(effect.low, effect.high),
        number(effect.null),
        f"{signed(effect.effect)} (log)" if is_ratio(effect) else percent(effect.effect),
        f"{number(effect.margin)} (log)" if is_ratio(effect) else percent(effect.margin),
        p_value(effect.p),
        number(effect.value),
        number(effect.reference),
        effect.better,
    ]
