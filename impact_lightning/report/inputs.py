"""What viewers read: the folders of tests that are done, and notes of what is missing in them."""

import base64
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from impact_lightning.suite.outcome import Outcome, Unit

UNKNOWN = 255  # the byte of a patch that was not measured
DIGITS = 4  # of numbers in the page: more are in the tables of the run


def done_tests(outcome: Outcome, level: str) -> list[Unit]:
    """Return the tests of a level that are done, in the order of the plan."""
    return [unit for unit in outcome.units if _is_test(unit, level) and unit.state == "done"]


def undone(outcome: Outcome, level: str) -> list[str]:
    """Return a sentence for each test of a level that is not done."""
    return [
        f"{unit.name} is {unit.state}{': ' + unit.error if unit.error else ''}"
        for unit in outcome.units
        if _is_test(unit, level) and unit.state != "done"
    ]


def _is_test(unit: Unit, level: str) -> bool:
    return unit.level == level and unit.verb == "test"


class Gaps:
    """What is missing in a section, and why.

    Args:
        folder: The folder of the run: paths in messages begin there, since a report travels without its machine.
        known: What is known to be missing from the start.
    """

    def __init__(self, folder: Path, known: Iterable[str] = ()) -> None:
        self.folder = folder
        self.notes = list(known)

    def add(self, note: str) -> None:
        """Note that something is missing."""
        self.notes.append(note.replace(f"{self.folder}/", ""))

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Turn an error of the block into a note, so that one damaged file hides no other.

        Args:
            what: What is read in the block, for people.
        """
        try:
            yield
        except Exception as error:  # a damaged file may end in any kind; none may cost the rest of the page
            said = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
            self.add(f"{what}: {said}")


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder by name; a missing one is an error."""
    return sorted(path for path in folder.iterdir() if path.is_dir())


# ------------------------------------------------------------------------------------------------------------ numbers


def rounded(value: float | None) -> float | None:
    """Return a number as the page holds it; None for one that is not finite, which JSON has not got.

    Example:
        >>> rounded(0.123456), rounded(float("nan"))
        (0.1235, None)
    """
    return None if value is None or not np.isfinite(value) else float(f"{value:.{DIGITS}g}")


def heat_bytes(maps: NDArray[Any]) -> bytes:
    """Return maps `(n, P)` as a byte a patch: 254 is the largest of them all, 0 nothing or less, 255 not measured.

    Example:
        >>> list(heat_bytes(np.array([[0.0, 2.0, 1.0, np.nan, -1.0]])))
        [0, 254, 127, 255, 0]
    """
    values = np.asarray(maps, np.float64)
    most = np.nanmax(values, initial=0.0)
    shares = np.clip(values / most if most > 0 else values * 0, 0, 1)
    return np.where(np.isnan(values), UNKNOWN, (254 * np.nan_to_num(shares)).round()).astype(np.uint8).tobytes()


def text_of(data: bytes | bytearray) -> str:
    """Return bytes as text."""
    return base64.b64encode(data).decode()
