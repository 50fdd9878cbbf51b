"""Verdict: what all checks together say of a circuit, in words."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from impact_lightning.circuits.means import CONSTANTS
from impact_lightning.circuits.validation import Validated

SURE = 3.0  # standard errors by which a model must be better than constants, to be able to do a task
UNABLE = "the model cannot do it"
PASSED = "passes every check"
LEVEL = 0.05  # of p-values
DRAWS = 20  # random circuits at least: the least p-value is then 1/21


class Control(NamedTuple):
    """A circuit that was learnt where there is nothing to find."""

    loss: float  # at the size of the circuit that it controls
    learnt: float  # the same on the images that it was learnt from: what a mask can memorise
    smallest: int  # switches at which it reaches the target, or -1 where none does


def verdict(one: Validated, controls: Mapping[str, Control], stability: tuple[float, float] | None) -> str:
    """Say what a circuit is, or which checks it fails.

    Args:
        one: What is known of it.
        controls: Circuits that were learnt where there is nothing to find.
        stability: Its overlap with those of other seeds, and what is expected by chance; None of one seed.
    """
    full, empty, alone = (one.scores[name] for name in ("full", "empty", "alone"))
    if not one.reached:
        return "no size reaches the target"
    if not bool(one.mask.any()):
        return "constants reach the target"
    if one.task_is_of_labels:
        sure = SURE * math.sqrt(0.25 / full["images"])
        if sure >= 1 - empty["accuracy"]:
            return "too few images to tell"
        if full["accuracy"] - empty["accuracy"] < sure:
            return UNABLE
    failed = {
        "held-out loss": one.intervals["alone"].low > one.target,
        "sufficiency": one.p_sufficient > LEVEL,
        "necessity": one.p_necessary > LEVEL,
        "attribution": one.scores["by gradient"]["loss"] <= alone["loss"],
        "ablation": any(
            one.scores[name.replace("_", " ")]["loss"] > empty["loss"]
            for name in CONSTANTS
            if name.replace("_", " ") in one.scores
        ),
        **{name: alone["loss"] >= control.loss for name, control in controls.items()},
        "stability": stability is not None and not stability[0] > stability[1],
    }
    names = [name for name, is_failed in failed.items() if is_failed]
    return "fails " + ", ".join(names) if names else PASSED


def remarks(one: Validated) -> tuple[str, ...]:
    """Return what a reader of a circuit's numbers has to know."""
    found = []
    if one.target < one.scores["full"]["loss"]:
        found.append("the target is below the whole model's loss")
    smallest, safe = one.sizes
    if one.reached and smallest != safe:
        end = "the whole model" if safe < 0 else f"{safe} switches"
        found.append(f"larger circuits, up to {end}, do not all reach the target")
    return tuple(found)
