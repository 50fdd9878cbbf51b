"""What zeros have emptied: rows and columns of weights, and the neurons that died by it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Emptied:
    """Counts over all tensors that have zeros.

    Args:
        rows: Outputs that have no weight left, and are constant.
        columns: Inputs that nothing reads any more.
        neurons: Neurons of MLPs that are constant, or that nothing reads.
        of_neurons: How many neurons there are in these blocks.
    """

    rows: int
    columns: int
    neurons: int
    of_neurons: int

    def __str__(self) -> str:
        """Say it in one line."""
        dead = f"{self.neurons:,} of {self.of_neurons:,} neurons dead" if self.of_neurons else "no MLP among them"
        return f"{dead}, {self.rows:,} rows and {self.columns:,} columns empty"


def emptied(masks: Mapping[str, Tensor]) -> Emptied:
    """Count what is empty.

    Args:
        masks: Which weights are kept `(out, in)`, by the names of timm; of a convolution `(out, C, p, p)`.
    """
    silent: dict[str, Tensor] = {}  # neurons by block
    rows = columns = 0
    for name, mask in masks.items():
        no_input, no_reader = ~mask.flatten(1).any(1), ~mask.flatten(1).any(0)  # (out,), (in,)
        rows += int(no_input.sum())
        columns += int(no_reader.sum())
        block, _, layer = name.partition(".mlp.")
        if layer in ("fc1.weight", "fc2.weight"):
            dead = no_input if layer == "fc1.weight" else no_reader
            silent[block] = silent.get(block, dead) | dead
    neurons = sum(int(dead.sum()) for dead in silent.values())
    return Emptied(rows, columns, neurons, sum(len(dead) for dead in silent.values()))
