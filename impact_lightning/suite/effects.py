"""Effects: by how much a model differs from its reference in the measures of a level, before anything is judged.

Every measure is a difference beyond chance with its interval. As a share of what the reference has beyond chance it is
an effect.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from impact_lightning.results import Record
from impact_lightning.suite.outcome import Effect

SEED = re.compile(r"-s\d+$")  # at the end of a dictionary's name
Better = Literal["more", "less"]


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


Table = Mapping[tuple[str, str], Record]  # by what it is of, and measure


def effects_of(level: str, table: Table, model: str, reference: str, margin: float) -> Iterator[Effect]:
    """Yield the effects of a level; those whose records are missing are left out."""
    if level == "neurons":
        for headline in NEURONS:
            found = paired(
                table, f"{model} - {reference}/neurons", f"{model}/neurons", f"{reference}/neurons", headline
            )
            yield from _effect(headline, "neurons", found, margin)
    elif level == "attribution":
        for headline in ATTRIBUTION:
            names = f"{model} - {reference}/{METHOD}", f"{model}/{METHOD}", f"{reference}/{METHOD}"
            yield from _effect(headline, METHOD, paired(table, *names, headline, "_above_random"), margin)
    elif level == "circuits":
        for headline in CIRCUITS:
            yield from _ratio(table, model, reference, headline, margin)
    else:
        kinds = {SEED.sub("", of.removeprefix(f"{reference}/")) for of, _ in table if of.startswith(f"{reference}/")}
        for kind in sorted(kinds):
            for headline in SAE:
                found = unpaired(table, f"{model}/{kind}", f"{reference}/{kind}", headline)
                yield from _effect(headline, kind, found, margin)


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


def _effect(headline: Headline, of: str, found: Compared | None, margin: float) -> Iterator[Effect]:
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
