"""Answers: is a model easier, harder or the same to understand as its reference, level by level.

Effects within a margin that is fixed beforehand are the same. p-values are corrected over the measures of a level
(Holm).
"""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

from impact_lightning.suite.effects import effects_of
from impact_lightning.suite.outcome import Answer, Effect, Entry, Judgement, Model, Verdict

SURE = 0.05  # p-values below this settle a question


def verdicts(
    models: Sequence[Model],
    levels: Sequence[str],
    entries: Sequence[Entry],
    owners: Mapping[str, str],
    margin: float,
    unable: Container[str] = (),
) -> Iterator[Verdict]:
    """Yield the answer of each level for each model but the references.

    Args:
        models: The models.
        levels: The levels that were asked.
        entries: All records.
        owners: The model of each unit that has one.
        margin: Effects below this share of what the reference has beyond chance are the same.
        unable: Models that do the task no better than chance: there is nothing in them to understand.
    """
    for level in levels:
        own = [entry for entry in entries if entry.level == level]
        table = {(_name(entry, owners), entry.record.measure): entry.record for entry in own}
        for model in models:
            if model.name != model.reference:
                effects = holm([*effects_of(level, table, model.name, model.reference, margin)])
                lost = [name for name in (model.name, model.reference) if name in unable]
                yield hollow(level, model, effects, lost[0]) if lost else verdict(level, model, effects)


def _name(entry: Entry, owners: Mapping[str, str]) -> str:
    """Return what a record is of; a dictionary's does not say of which model."""
    return f"{owners[entry.unit]}/{entry.record.of}" if entry.level == "sae" else entry.record.of


# --------------------------------------------------------------------------------------------------------- judgements


def holm(effects: Sequence[Effect]) -> list[Effect]:
    """Return effects with p-values that are corrected over all of them, and judged."""
    known = [place for place, effect in enumerate(effects) if math.isfinite(effect.p)]
    corrected = {place: math.nan for place in range(len(effects))}
    largest = 0.0
    for rank, place in enumerate(sorted(known, key=lambda place: effects[place].p)):
        largest = max(largest, min(1.0, effects[place].p * (len(known) - rank)))
        corrected[place] = largest
    return [judged(replace(effect, p=corrected[place])) for place, effect in enumerate(effects)]


def judged(effect: Effect) -> Effect:
    """Return an effect with its judgement: the same within the margin, or easier or harder where p is small."""
    low, high = _effect_interval(effect)
    judgement: Judgement = "unsettled"
    is_nothing = effect.low == effect.high == effect.null  # the same model twice
    if is_nothing or (-effect.margin <= low and high <= effect.margin):  # no, where they are nan
        judgement = "same"
    elif effect.p < SURE and abs(effect.effect) > effect.margin:  # no, where both are at chance
        is_more = effect.difference > effect.null
        judgement = "easier" if is_more == (effect.better == "more") else "harder"
    return replace(effect, judgement=judgement)


def _effect_interval(effect: Effect) -> tuple[float, float]:
    """Return the interval of an effect in its own units."""
    if effect.null == 1.0:  # a ratio
        ends = [math.log(end) if 0 < end < math.inf else math.nan for end in (effect.low, effect.high)]
        return ends[0], ends[1]
    scale = effect.effect / effect.difference if effect.difference else math.nan
    return effect.low * scale, effect.high * scale


def hollow(level: str, model: Model, effects: list[Effect], unable: str) -> Verdict:
    """Return the answer of a comparison in which one of both cannot do the task."""
    words = f"{unable} does the task no better than chance: what is found in it says nothing about understanding."
    unsettled = [replace(effect, judgement="unsettled") for effect in effects]
    return Verdict(level, model.name, model.reference, "missing", words, unsettled)


def verdict(level: str, model: Model, effects: list[Effect]) -> Verdict:
    """Return the answer that the effects of a level give together."""
    found = {effect.judgement for effect in effects}
    answer: Answer = "unsettled"
    if not effects:
        answer = "missing"
    elif {"easier", "harder"} <= found:
        answer = "mixed"
    elif "easier" in found:
        answer = "easier"
    elif "harder" in found:
        answer = "harder"
    elif found == {"same"}:
        answer = "same"
    telling = sorted(effects, key=_importance)
    return Verdict(level, model.name, model.reference, answer, _words(level, model, answer, effects), telling)


def _importance(effect: Effect) -> tuple[bool, float]:
    """Return what effects are ordered by: those that decide first, the largest of them before others."""
    return effect.judgement not in ("easier", "harder"), -abs(effect.effect) if math.isfinite(effect.effect) else 0.0


WHERE = {
    "neurons": "in its neurons",
    "sae": "in the features of its dictionaries",
    "circuits": "in its circuits",
    "attribution": "in its maps",
}
SAID = {
    "easier": "{model} is easier to understand than {reference} {where}",
    "harder": "{model} is harder to understand than {reference} {where}",
    "same": "{model} is as easy to understand as {reference} {where}",
    "mixed": "{model} is both easier and harder to understand than {reference} {where}",
    "unsettled": "whether {model} is easier to understand than {reference} {where} is not settled",
    "missing": "{model} was not compared with {reference} {where}: no difference of theirs has an interval",
}


def _words(level: str, model: Model, answer: Answer, effects: Sequence[Effect]) -> str:
    """Return an answer as a sentence."""
    said = SAID[answer].format(model=model.name, reference=model.reference, where=WHERE[level])
    sides = {side: [_told(one) for one in effects if one.judgement == side] for side in ("easier", "harder")}
    said_by = [
        (f"{side} by " if answer == "mixed" else "") + ", ".join(found) for side, found in sides.items() if found
    ]
    told = "; ".join(said_by)
    if answer == "unsettled":
        n_same = sum(effect.judgement == "same" for effect in effects)
        told = f"none of {len(effects)} differences is sure"
        if n_same:
            told = f"{n_same} of {len(effects)} differences are within the margin, of the others none is sure"
    if answer == "same":
        told = f"all of {len(effects)} differences are within the margin"
    return f"{said}: {told}." if told else f"{said}."


def _told(effect: Effect) -> str:
    """Return an effect in words."""
    name = effect.measure.replace("_", " ")
    if effect.null == 1.0:
        of = f" in {effect.of}" if effect.of else ""
        return f"{effect.difference:.2f} times the {name}{of} ({effect.low:.2f} to {effect.high:.2f})"
    share = f", {abs(effect.effect):.0%} of {effect.share_of}" if math.isfinite(effect.effect) else ""
    told = f"{'more' if effect.difference > 0 else 'less'} {name} ({effect.difference:+.3g}{share})"
    return told.replace("(-", "(\N{MINUS SIGN}")
