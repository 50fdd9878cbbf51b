"""Layers of units: the neurons of an MLP, or the heads of an attention, as columns of one matrix of activations."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from impact_lightning.backbones import check_supported, site_width
from impact_lightning.types import UserError

Kind = Literal["neuron", "head"]
SITES: dict[Kind, str] = {"neuron": "mlp_neuron", "head": "head_out"}


@dataclass(frozen=True)
class Layer:
    """The units of one kind in one block.

    Args:
        block: Number of the block.
        kind: What the units are.
        n_units: How many there are, n.
        width: Channels of a unit, w: 1 for a neuron, the size of a head for a head.
        units: First of its units among those of all layers.
        channels: First of its channels among those of all layers.
    """

    block: int
    kind: Kind
    n_units: int
    width: int
    units: int
    channels: int

    @property
    def site(self) -> str:
        """The site where the units are read, `(B, T, n * w)`."""
        return f"blocks.{self.block}.{SITES[self.kind]}"

    @property
    def of_units(self) -> slice:
        """Its columns in a matrix with one column for each unit."""
        return slice(self.units, self.units + self.n_units)

    @property
    def of_channels(self) -> slice:
        """Its columns in a matrix with one column for each channel."""
        return slice(self.channels, self.channels + self.n_units * self.width)

    def __str__(self) -> str:
        """Name the layer."""
        return f"blocks.{self.block}.{self.kind}s"

    def sizes(self, x: Tensor) -> Tensor:
        """Return the activation of each unit, `(..., n * w) -> (..., n)`: of a head the length of what it writes."""
        if self.kind == "neuron":
            return x
        lengths: Tensor = torch.linalg.vector_norm(x.unflatten(-1, (self.n_units, self.width)), dim=-1)
        return lengths


def find_layers(model: nn.Module, blocks: Iterable[int] | None, kinds: Iterable[Kind]) -> list[Layer]:
    """Return the layers of some blocks, or of all, in the order of execution.

    Args:
        model: A model that `check_supported` accepts.
        blocks: Numbers of blocks; negative ones count from the end; None takes all.
        kinds: Kinds of units.
    """
    transformer: Any = check_supported(model)
    depth = len(transformer.blocks)
    chosen = set(range(depth)) if blocks is None else {_block(number, depth) for number in blocks}
    wanted = set(kinds)
    if not chosen or not wanted:
        raise UserError("blocks and kinds must name at least one each")
    layers: list[Layer] = []
    units = channels = 0
    for block in sorted(chosen):
        for kind in ("head", "neuron"):  # as a block computes them
            if kind in wanted:
                width = site_width(model, f"blocks.{block}.{SITES[kind]}")
                n = transformer.blocks[block].attn.num_heads if kind == "head" else width
                layers.append(Layer(block, kind, n, width // n, units, channels))
                units, channels = units + n, channels + width
    return layers


def _block(number: int, depth: int) -> int:
    if not -depth <= number < depth:
        raise UserError(f"blocks: there is no block {number} in a model of {depth} blocks, 0 to {depth - 1}")
    return number % depth
