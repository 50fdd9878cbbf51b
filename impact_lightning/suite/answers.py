"""Answers: is a model easier, harder or the same to understand as its reference, level by level.

Every measure is a difference beyond chance with its interval. As a share of what the reference has beyond chance it is
an effect, and effects within a margin that is fixed beforehand are the same. p-values are corrected over the measures
of a level (Holm).
"""

import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from impact_lightning.results import Record
from impact_lightning.suite.outcome import Answer, Effect, Entry, Judgement, Model, Verdict

SURE = 0.05  # p-values below this settle a question
SEED = re.compile(r"-s\d+$")  # at the end of a dictionary's name
Better = Literal["more", "less"]
Floats = npt.NDArray[np.float64]


class Headline(NamedTuple):
    """A measure that answers the question of a level."""

    measure: str
    better: Better  # which of both is easier to understand
    is_beyond: bool = True  # whether its null is subtracted: not where that is another way to spoil the model


NEURONS = (
    Headline("selectivity", "more"),
    Headline("label_entropy", "less"),
    Headline("class_variance", "less"),
    Headline("ablation_impact", "more"),
    Headline("auroc_best", "more"),
)
SAE = (
    Headline("fvu", "less"),
    Headline("purity", "more"),
    Headline("label_monosemanticity", "more"),
    Headline("label_entropy", "less"),
    Headline("loss_recovered", "more", is_beyond=False),
)
CIRCUITS = (Headline("nodes", "less"), Headline("edges_over_density", "less"))
ATTRIBUTION = (
    Headline("patch_area_between", "more"),
    Headline("rise_insertion_auc", "more"),
    Headline("rise_deletion_auc", "less"),
    Headline("groups_saco", "more"),
    Headline("energy_in_mask", "more"),
)
METHOD = "transformer_attribution"  # the paper's


@dataclass(frozen=True)
class Compared:
    """A difference between a model and its reference, before it is judged."""

    value: float
    reference: float
    scale: float  # what the difference is a share of; nan where there is nothing
    share_of: str  # the same in words
    difference: float
    low: float  # of Student's t
    high: float
    freedom: float  # degrees of it
    how: str


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
                effects = holm([*_effects(level, table, model.name, model.reference, margin)])
                lost = [name for name in (model.name, model.reference) if name in unable]
                yield hollow(level, model, effects, lost[0]) if lost else verdict(level, model, effects)


def _name(entry: Entry, owners: Mapping[str, str]) -> str:
    """Return what a record is of; a dictionary's does not say of which model."""
    return f"{owners[entry.unit]}/{entry.record.of}" if entry.level == "sae" else entry.record.of


Table = Mapping[tuple[str, str], Record]  # by what it is of, and measure


def _effects(level: str, table: Table, model: str, reference: str, margin: float) -> Iterator[Effect]:
    """Yield the effects of a level; those whose records are missing are left out."""
    if level == "neurons":
        for headline in NEURONS:
            found = paired(
                table, f"{model} - {reference}/neurons", f"{model}/neurons", f"{reference}/neurons", headline
            )
            yield from _judged(headline, "neurons", found, margin)
    elif level == "attribution":
        for headline in ATTRIBUTION:
            names = f"{model} - {reference}/{METHOD}", f"{model}/{METHOD}", f"{reference}/{METHOD}"
            yield from _judged(headline, METHOD, paired(table, *names, headline, "_above_random"), margin)
    elif level == "circuits":
        for headline in CIRCUITS:
            yield from _ratio(table, model, reference, headline, margin)
    else:
        kinds = {SEED.sub("", of.removeprefix(f"{reference}/")) for of, _ in table if of.startswith(f"{reference}/")}
        for kind in sorted(kinds):
            for headline in SAE:
                found = unpaired(table, f"{model}/{kind}", f"{reference}/{kind}", headline)
                yield from _judged(headline, kind, found, margin)


# ------------------------------------------------------------------------------------------------------- comparisons


def paired(table: Table, both: str, mine: str, theirs: str, headline: Headline, beyond: str = "") -> Compared | None:
    """Return a difference that was measured in pairs, of classes or images: chance is subtracted in it already.

    Draws of n pairs vary less than the pairs do, by (n - 1) / n, and are taken as normal: for few pairs the interval is
    widened to that of Student's t.
    """
    found = table.get((both, headline.measure + beyond))
    own, other = table.get((mine, headline.measure)), table.get((theirs, headline.measure))
    if found is None or own is None or other is None or found.interval is None:
        return None
    pairs = found.protocol.get("n_classes") if "classes" in found.interval.how else found.n
    freedom = float(pairs) - 1 if isinstance(pairs, int) else math.inf
    wider = _t(freedom) / _t(math.inf) * math.sqrt(1 + 1 / freedom) if freedom > 0 else math.nan
    low, high = (found.value + wider * (end - found.value) for end in (found.interval.low, found.interval.high))
    widened = f", widened to Student's t with {freedom:g} degrees of freedom" if math.isfinite(freedom) else ""
    how = f"in pairs, beyond chance ({_chance(other)}); {found.interval.how}{widened}"
    scale, share_of = _scale([other], [own], headline, theirs, mine)
    return Compared(own.value, other.value, scale, share_of, found.value, low, high, freedom, how)


def unpaired(table: Table, mine: str, theirs: str, headline: Headline) -> Compared | None:
    """Return a difference of numbers with intervals of their own, averaged over seeds of dictionaries.

    All seeds are tested on the same images, so that more seeds make the interval within one no smaller. Few seeds say
    little of how much seeds differ: degrees of freedom are those of Welch and Satterthwaite.
    """
    own, others = ([*_of_seeds(table, name, headline.measure)] for name in (mine, theirs))
    if not own or not others:
        return None
    sizes = [np.array([_size(one, headline) for one in some]) for some in (own, others)]
    difference = float(sizes[0].mean() - sizes[1].mean())
    within = sum(_within(some) for some in (own, others))
    between = [(size.var(ddof=1) / len(size), len(size) - 1) for size in sizes if len(size) > 1]  # of a mean
    variance = float(within + sum(part for part, _ in between))
    unsure = sum(part**2 / freedom for part, freedom in between)
    freedom = float(variance**2 / unsure) if unsure else math.inf
    half = _t(freedom) * math.sqrt(variance)
    value, reference = (float(np.mean([one.value for one in some])) for some in (own, others))
    what = f"beyond chance ({_chance(others[0])})" if headline.is_beyond else "of the values"
    seeds = f"{len(own)} seed{'s' * (len(own) > 1)}"
    welch = ", Student's t by Welch and Satterthwaite" if math.isfinite(freedom) else ""
    how = f"{what}; intervals of both added, {seeds}{welch}"
    scale, share_of = _scale(others, own, headline, theirs, mine)
    low, high = difference - half, difference + half
    return Compared(value, reference, scale, share_of, difference, low, high, freedom, how)


def _t(freedom: float) -> float:
    """Return how many standard errors half a 95 % interval of Student's t is."""
    return float(stats.t.ppf(0.975, freedom))


def _of_seeds(table: Table, kind: str, measure: str) -> Iterator[Record]:
    for (of, name), record in table.items():
        if name == measure and SEED.sub("", of) == kind and record.interval is not None:
            yield record


def _within(records: Sequence[Record]) -> float:
    """Return the mean squared standard error of one of several numbers."""
    errors = [_error(one.interval.low, one.interval.high) for one in records if one.interval is not None]
    return float(np.mean(np.square(errors)))


def _ratio(table: Table, model: str, reference: str, headline: Headline, margin: float) -> Iterator[Effect]:
    """Yield the effect of a ratio of sizes at one loss; its logarithm is what is judged."""
    found = table.get((f"{model} / {reference}", f"{headline.measure}_ratio"))
    own, other = (table.get((name, f"{headline.measure}_geometric_mean")) for name in (model, reference))
    if found is None or own is None or other is None or found.interval is None or found.value <= 0:
        return
    low, high, log = found.interval.low, found.interval.high, math.log(found.value)
    is_known = low > 0 and math.isfinite(high)
    tasks = {of.rpartition("/")[0] for of, name in table if of.startswith(f"{model}/") and name == "loss_full"}
    is_whole = found.n >= len(tasks)  # without tasks that one of both has no circuit for
    error = _error(math.log(low), math.log(high), found.n - 1) if is_known else math.nan
    yield Effect(
        measure=headline.measure,
        of="" if is_whole else f"{found.n} of {len(tasks)} tasks",
        better=headline.better,
        value=own.value,
        reference=other.value,
        difference=found.value,
        low=low,
        high=high,
        null=1.0,
        how="; ".join(("ratio at the same loss, 1 where circuits are as large", found.interval.how, *found.notes)),
        effect=log,
        margin=math.log1p(margin),
        # circuits of fewer than half of the tasks, the easy ones, say nothing of the model
        p=_p(log, error, found.n - 1) if is_known and 2 * found.n >= len(tasks) else math.nan,
        judgement="unsettled",
    )


def _judged(headline: Headline, of: str, found: Compared | None, margin: float) -> Iterator[Effect]:
    """Yield a difference as an effect that is still to be judged."""
    if found is None or not math.isfinite(found.difference):
        return
    yield Effect(
        measure=headline.measure,
        of=of,
        better=headline.better,
        value=found.value,
        reference=found.reference,
        difference=found.difference,
        low=found.low,
        high=found.high,
        null=0.0,
        how=found.how,
        effect=found.difference / found.scale,
        margin=margin,
        p=_p(found.difference, _error(found.low, found.high, found.freedom), found.freedom),
        judgement="unsettled",
        share_of=found.share_of,
    )


def excess(records: Sequence[Record], headline: Headline) -> float:
    """Return by how much records are better than chance; nan where one is not, beyond half its interval."""
    sign = 1 if headline.better == "more" else -1
    halves = [0.0 if one.interval is None else (one.interval.high - one.interval.low) / 2 for one in records]
    beyond = [sign * _size(one, headline) for one in records]
    return float(np.mean(beyond)) if all(size > half for size, half in zip(beyond, halves, strict=True)) else math.nan


def _scale(
    others: Sequence[Record], own: Sequence[Record], headline: Headline, reference: str, model: str
) -> tuple[float, str]:
    """Return what a difference is a share of, also in words: what the reference has beyond chance, or else the model.

    Args:
        others: Records of the reference, one for each seed.
        own: Records of the model.
        headline: The measure.
        reference: What the records of the reference are of, its name first.
        model: The same of the model.
    """
    of = "has beyond chance" if headline.is_beyond else "has"
    for some, name in ((others, reference), (own, model)):
        if not math.isnan(size := excess(some, headline)):
            return size, f"what {name.partition('/')[0]} {of}"
    return math.nan, ""


def _size(record: Record, headline: Headline) -> float:
    """Return a number beyond its null, where that is chance."""
    null = record.null.value if record.null is not None and math.isfinite(record.null.value) else 0.0
    return record.value - null if headline.is_beyond else record.value


def _chance(record: Record) -> str:
    return record.null.how if record.null is not None else "no null: of all of it"


def _error(low: float, high: float, freedom: float = math.inf) -> float:
    """Return the standard error behind a 95 % interval: of draws, or of Student's t with so many degrees of freedom."""
    return (high - low) / (2 * _t(freedom))


def _p(value: float, error: float, freedom: float) -> float:
    """Return the two-sided p-value of no difference; nan where its error is not known."""
    if math.isnan(error):
        return math.nan
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * stats.t.sf(abs(value) / error, freedom))


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
