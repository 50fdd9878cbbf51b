"""`density.csv`: how many weights of every tensor were not zero, in the course of a training."""

import csv
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from impact_lightning.files import write_csv

HEADER = ("step", "tensor", "rule", "nonzeros", "numel")


class DensityLog:
    """Appends a line a tensor; a run that continues drops what was written after its checkpoint.

    Args:
        path: The file.
        step: The step that the run begins with.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self._last = -1
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == len(HEADER) and row[0].isdecimal()]
        write_csv(path, [HEADER, *(row for row in rows if int(row[0]) < step)])

    def add(self, step: int, tensors: Mapping[str, Tensor], rules: Mapping[str, float]) -> None:
        """Append the counts after a step, once; a rule is a density, and tensors without one are dense."""
        if step == self._last:
            return
        self._last = step
        rows = [
            (step, name, rules.get(name, "dense"), int(tensor.count_nonzero()), tensor.numel())
            for name, tensor in tensors.items()
        ]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(rows)
