"""The outcome of `impact`, as `results.json` holds it: models, units, answers, planted truths, and every record."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from impact_lightning.files import atomic_write
from impact_lightning.results import Record, plain, read_content, record_from_json, record_to_json
from impact_lightning.types import UserError

FILE = "results.json"
SCHEMA = 2  # 1 is the file that a single `test` writes

LEVELS = ("neurons", "sae", "circuits", "attribution")
Judgement = Literal["easier", "harder", "same", "unsettled"]
Answer = Literal["easier", "harder", "same", "mixed", "unsettled", "missing"]
State = Literal["done", "failed", "skipped", "waiting"]


@dataclass(frozen=True)
class Model:
    """A model that was compared.

    Args:
        name: Its name, with the seed where there are several: `wanda70`, `wanda70.1`.
        group: Its name in the configuration.
        kind: How it was made, in words: `trained`, `pruned by wanda, fine-tuned`, ...
        seed: Seed of its training.
        reference: Name of the model that it is compared with; its own name for the reference itself.
        sparsity: Share of zeros in the linear layers of its blocks; nan where that is not known.
        weights: Fingerprint of its weights; empty where it was not made.
        top1: Its accuracy on the test images; nan where it was not measured.
    """

    name: str
    group: str
    kind: str
    seed: int
    reference: str
    sparsity: float
    weights: str
    top1: float


@dataclass(frozen=True)
class Unit:
    """A unit of work of the plan.

    Args:
        name: Such as `dense/fit`, `neurons` or `sae/dense/test`.
        level: The level that it serves; empty where it makes or tests models.
        models: The models that it reads or makes.
        verb: `fit`, `test`, `prune` or `extract`.
        folder: Where it was run, below the folder of the run; its configuration and its log are there.
        fingerprint: Of everything that it depends on.
        after: Names of the units whose files it reads.
        state: What came of it.
        error: Why it failed or was skipped.
    """

    name: str
    level: str
    models: list[str]
    verb: str
    folder: str
    fingerprint: str
    after: list[str]
    state: State
    error: str = ""


@dataclass(frozen=True)
class Effect:
    """How a model differs from its reference in one measure.

    Args:
        measure: Name of the measure.
        of: What it was measured of, without the name of the model; of circuits, how many tasks if not all.
        better: Whether more or less of it is easier to understand.
        value: The number of the model.
        reference: The number of the reference.
        difference: By how much the model is above the reference, chance subtracted; of a ratio, the ratio itself.
        low: Lower end of the interval of the difference.
        high: Upper end of it.
        null: The difference where there is none: 0, or of a ratio 1.
        how: What the null and the interval are, in words.
        effect: The difference as a share of what the reference has beyond chance, or else the model; of a ratio,
            its logarithm.
        margin: Smaller effects are never called easier or harder; fixed before anything was measured.
        p: Two-sided p-value of no difference, corrected over the measures of the level (Holm).
        judgement: What it says.
        share_of: What the effect is a share of, in words; empty for a ratio.
    """

    measure: str
    of: str
    better: Literal["more", "less"]
    value: float
    reference: float
    difference: float
    low: float
    high: float
    null: float
    how: str
    effect: float
    margin: float
    p: float
    judgement: Judgement
    share_of: str = ""


@dataclass(frozen=True)
class Verdict:
    """The answer of one level for one model.

    Args:
        level: The level.
        model: The model.
        reference: What it is compared with.
        answer: Easier, harder or the same to understand, or why that is not known.
        words: The answer as one sentence.
        effects: The measures behind it: those that decide first, then by size.
    """

    level: str
    model: str
    reference: str
    answer: Answer
    words: str
    effects: list[Effect]


@dataclass(frozen=True)
class Planted:
    """Something that is known to be there, and whether a level has found it.

    Args:
        level: The level.
        model: The model.
        known: What is there, in words.
        measure: What was measured.
        value: Its number.
        null: The number where nothing was found.
        low: Lower end of the interval of the number; nan where there is none.
        high: Upper end of it.
        found: Whether the number is beyond its null by more than chance.
    """

    level: str
    model: str
    known: str
    measure: str
    value: float
    null: float
    low: float
    high: float
    found: bool


@dataclass(frozen=True)
class Entry:
    """A record, and where it comes from."""

    level: str
    unit: str
    record: Record


@dataclass(frozen=True)
class Outcome:
    """Everything that `results.json` holds; times are in `plan.json`, so that the same run gives the same file.

    Args:
        version: Version of the package.
        title: What the run is called.
        configuration: The resolved configuration.
        models: The models, the reference first.
        units: The plan, in the order of work.
        verdicts: One for each level and model but the reference.
        planted: One for each planted truth; empty where nothing is known of the data.
        entries: Every number, with its protocol, null, interval and fingerprints.
    """

    version: str
    title: str
    configuration: dict[str, Any]
    models: list[Model]
    units: list[Unit]
    verdicts: list[Verdict]
    planted: list[Planted]
    entries: list[Entry] = field(default_factory=list)


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Write a results file; protocols that many records share are written once."""
    protocols: dict[str, int] = {}
    records = []
    for entry in outcome.entries:
        record = record_to_json(entry.record)
        text = json.dumps(record.pop("protocol"), sort_keys=True)
        place = protocols.setdefault(text, len(protocols))
        records.append({"level": entry.level, "unit": entry.unit, "protocol": place, **record})
    content = {"schema": SCHEMA, **plain(asdict(replace(outcome, entries=[])))}
    content |= {"protocols": [json.loads(text) for text in protocols], "records": records}
    del content["entries"]
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_outcome(path: Path) -> Outcome:
    """Return what `write_outcome` wrote; a damaged, older or foreign file is refused by name."""
    content = _read(path)
    try:
        protocols = content["protocols"]
        entries = [
            Entry(one.pop("level"), one.pop("unit"), record_from_json({**one, "protocol": protocols[one["protocol"]]}))
            for one in content["records"]
        ]
        return Outcome(
            version=content["version"],
            title=content["title"],
            configuration=content["configuration"],
            models=[Model(**_numbers(one, "sparsity", "top1")) for one in content["models"]],
            units=[Unit(**one) for one in content["units"]],
            verdicts=[_verdict(one) for one in content["verdicts"]],
            planted=[Planted(**_numbers(one, "value", "null", "low", "high")) for one in content["planted"]],
            entries=entries,
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: something does not fit the schema ({error}); {AGAIN}") from None


AGAIN = "run `impact` again, it makes the file anew from what is on disk"


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: there is no such file; `impact` writes it")
    content = read_content(path, AGAIN)
    if content["schema"] == 1:
        raise UserError(f"{path} holds the records of a single `test` (schema 1); a report needs the file of `impact`")
    if content["schema"] != SCHEMA:
        raise UserError(f"{path} has schema {content['schema']}, this version reads {SCHEMA}; {AGAIN}")
    return content


def _verdict(one: dict[str, Any]) -> Verdict:
    numbers = ("value", "reference", "difference", "low", "high", "null", "effect", "margin", "p")
    return Verdict(**{**one, "effects": [Effect(**_numbers(effect, *numbers)) for effect in one["effects"]]})


def _numbers(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return an entry with nan in place of null: JSON has no nan."""
    return {**entry, **{name: math.nan for name in names if entry[name] is None}}
