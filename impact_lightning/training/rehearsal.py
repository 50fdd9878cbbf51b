"""Runs that only try whether everything works."""

from typing import Any


def is_rehearsal(trainer: Any) -> bool:  # Any: Lightning sets the attribute where type checkers do not see it
    """Return whether this is a `fast_dev_run`, which writes no files."""
    return bool(trainer.fast_dev_run)
