"""Edges: the nonzero weights between kept nodes, counted exactly and for many circuits at once."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn

from impact_lightning.backbones import check_supported
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.types import UserError

Role = Literal["qkv", "proj", "fc1", "fc2"]


# ------------------------------------------------------------------------------------------- the matrices of a model


class Matrix(NamedTuple):
    """Weights between two sites of a block, or from one to the three of q, k and v."""

    name: str  # such as "blocks.0.attn.qkv"; of a gate packed with its value "blocks.0.mlp.fc1.gate"
    block: int
    role: Role
    parameter: str  # where the weights lie, by the name of timm
    rows: slice  # of it
    weight: Tensor  # (out, in)
    gain: Tensor | None  # (out,) what LayerScale multiplies the rows by
    inputs: slice  # columns of the nodes that are read, in a table with one column for each node
    outputs: slice  # of those that are written


def block_matrices(model: nn.Module, nodes: Nodes) -> Iterator[Matrix]:
    """Yield the matrices of all blocks, a gated MLP having two `fc1`; refuse what is not linear between two sites.

    Args:
        model: A model that `check_supported` accepts.
        nodes: Its nodes.
    """
    blocks: Any = check_supported(model).blocks
    if len(blocks) != len(nodes.heads):
        raise UserError(f"the model has {len(blocks)} blocks and the nodes are of {len(nodes.heads)}: of another model")
    for i, block in enumerate(blocks):
        path = f"blocks.{i}"
        for name, norm in {"attn.norm": block.attn.norm, "mlp.norm": block.mlp.norm}.items():
            if not isinstance(norm, nn.Identity):
                raise UserError(
                    f"{path}.{name} is a {type(norm).__name__}: across it each channel depends on all others, so that "
                    "edges of this model cannot be counted"
                )
        q, v = nodes.site(i, "q").of, nodes.site(i, "v").of
        attn_in, attn_out, mlp_in, neuron, mlp_out = (
            nodes.site(i, name).of for name in ("attn_in", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
        )
        scales = _gain(f"{path}.ls1", block.ls1), _gain(f"{path}.ls2", block.ls2)
        found = [
            _matrix(f"{path}.attn.qkv", i, "qkv", block.attn.qkv, None, attn_in, slice(q.start, v.stop)),
            _matrix(f"{path}.attn.proj", i, "proj", block.attn.proj, scales[0], v, attn_out),
            *_into_neurons(f"{path}.mlp", i, block.mlp, mlp_in, neuron),
            _matrix(f"{path}.mlp.fc2", i, "fc2", block.mlp.fc2, scales[1], neuron, mlp_out),
        ]
        for matrix in found:
            expected = [part.stop - part.start for part in (matrix.outputs, matrix.inputs)]
            if list(matrix.weight.shape) != expected:
                raise UserError(f"{matrix.name} is {list(matrix.weight.shape)}, and its nodes make it {expected}")
        yield from found


def _matrix(
    name: str, block: int, role: Role, linear: nn.Module, gain: Tensor | None, inputs: slice, outputs: slice
) -> Matrix:
    if not isinstance(linear, nn.Linear):
        raise UserError(f"{name} is a {type(linear).__name__}: edges are weights of a torch.nn.Linear")
    weight = linear.weight.detach()
    return Matrix(name, block, role, f"{name}.weight", slice(0, len(weight)), weight, gain, inputs, outputs)


def _into_neurons(path: str, block: int, mlp: Any, inputs: slice, outputs: slice) -> list[Matrix]:
    """Return what neurons read through: once, or as a gate and as a value."""
    if isinstance(mlp, SwiGLU):
        names = ("fc1_g", "fc1_x")
        return [_matrix(f"{path}.{n}", block, "fc1", getattr(mlp, n), None, inputs, outputs) for n in names]
    whole = _matrix(f"{path}.fc1", block, "fc1", mlp.fc1, None, inputs, outputs)
    if not isinstance(mlp, GluMlp):
        return [whole]
    half = len(whole.weight) // 2
    names = ("value", "gate") if mlp.gate_last else ("gate", "value")
    return [
        whole._replace(name=f"{whole.name}.{name}", rows=rows, weight=whole.weight[rows])
        for name, rows in zip(names, (slice(0, half), slice(half, 2 * half)), strict=True)
    ]


def _gain(name: str, scale: Any) -> Tensor | None:
    if isinstance(scale, nn.Identity):
        return None
    if type(scale).__name__ != "LayerScale":  # a class that has moved from one module of timm to another
        raise UserError(f"{name} is a {type(scale).__name__}: edges are defined for a LayerScale here, or none")
    gamma: Tensor = scale.gamma.detach()
    return gamma


# --------------------------------------------------------------------------------------- which of the weights are there


@dataclass(frozen=True)
class Wires:
    """Which weights of a matrix are nonzero.

    Args:
        name: Name of the matrix.
        block: Number of its block.
        role: Which of the matrices of a block it is; in a gated MLP two of them are `fc1`.
        inputs: Columns of the nodes that it reads.
        outputs: Columns of the nodes that it writes.
        present: Where weights are nonzero `(out, in)`, bool.
    """

    name: str
    block: int
    role: Role
    inputs: slice
    outputs: slice
    present: Tensor

    def into(self, masks: Tensor) -> Tensor:
        """Count for each output the weights from inputs that are on, `(P, n) -> (P, out)`."""
        return _products(masks[:, self.inputs], self.present.T)

    def out_of(self, masks: Tensor) -> Tensor:
        """Count for each input the weights to outputs that are on, `(P, n) -> (P, in)`."""
        return _products(masks[:, self.outputs], self.present)

    def between(self, masks: Tensor) -> Tensor:
        """Count the weights from inputs to outputs that are both on, `(P, n) -> (P,)`, exactly."""
        read, written, present = masks[:, self.inputs], masks[:, self.outputs], self.present
        columns, rows = (part.any(0).nonzero().squeeze(1) for part in (read, written))
        if 4 * len(columns) * len(rows) < present.numel():  # small circuits: what none of them has is left out
            read, written, present = read[:, columns], written[:, rows], present[rows][:, columns]
        counts = _products(read, present.T)
        # a row holds less than 2^24 weights, and is exact in float32; all rows together may hold more
        return counts.masked_fill_(~written, 0).sum(1, dtype=torch.int64)


def _products(on: Tensor, present: Tensor) -> Tensor:
    """Return `(P, a) x (a, b) -> (P, b)` of zeros and ones, exact below 2^24."""
    with torch.autocast(on.device.type, enabled=False):  # bfloat16 would round the counts
        return on.float() @ present.float()


@dataclass(frozen=True)
class Wiring:
    """Which weights of a model are nonzero: made once, asked for any number of circuits.

    Args:
        nodes: Nodes of the model.
        wires: All matrices of the blocks, in order of execution.
        query_shifts: Of each block None, or, if q or k are normalised over a head, for which channels `(H*h,)` the norm
            of q adds something.
    """

    nodes: Nodes
    wires: tuple[Wires, ...]
    query_shifts: tuple[Tensor | None, ...]

    @cached_property
    def density(self) -> float:
        """Share of the weights that are nonzero."""
        nonzero = sum(int(part.present.sum()) for part in self.wires)
        return nonzero / sum(part.present.numel() for part in self.wires)

    @property
    def device(self) -> torch.device:
        """Where it lies; masks are sent there."""
        return self.wires[0].present.device

    def of(self, block: int, role: Role) -> list[Wires]:
        """Return the matrices of a block that play a role."""
        return [part for part in self.wires if part.block == block and part.role == role]

    def to(self, device: torch.device | str) -> "Wiring":
        """Return the same elsewhere."""
        wires = tuple(replace(part, present=part.present.to(device)) for part in self.wires)
        shifts = tuple(None if shift is None else shift.to(device) for shift in self.query_shifts)
        return Wiring(self.nodes, wires, shifts)


def wiring(model: nn.Module, nodes: Nodes, kept: Mapping[str, Tensor] | None = None) -> Wiring:
    """Return which weights of the blocks are nonzero; a LayerScale of zero takes away a row.

    Args:
        model: A model that `check_supported` accepts.
        nodes: Its nodes.
        kept: Saved masks by the names of timm, such as `read_masks` returns: weights that a mask removed do not count,
            whatever they are now. Matrices without a mask are taken as they are.
    """
    kept, found, used = kept or {}, [], set()
    for matrix in block_matrices(model, nodes):
        present = matrix.weight != 0
        if matrix.parameter in kept:
            used.add(matrix.parameter)
            present &= _mask_of(matrix, kept[matrix.parameter]).to(present.device)
        if matrix.gain is not None:
            present &= (matrix.gain != 0)[:, None]
        found.append(Wires(matrix.name, matrix.block, matrix.role, matrix.inputs, matrix.outputs, present))
    if kept and not used:
        raise UserError(f"no mask is of a matrix of this model: {', '.join(list(kept)[:3])}, ... are not in its blocks")
    return Wiring(nodes, tuple(found), tuple(_query_shift(block.attn) for block in _blocks(model)))


def _blocks(model: nn.Module) -> Any:
    return check_supported(model).blocks


def _mask_of(matrix: Matrix, mask: Tensor) -> Tensor:
    part = mask[matrix.rows]
    if part.shape != matrix.weight.shape:
        shape = tuple(matrix.weight.shape)
        raise UserError(
            f"the mask of {matrix.parameter} is {tuple(mask.shape)} and does not fit: {matrix.name} is {shape}"
        )
    return part.bool()


def _query_shift(attn: Any) -> Tensor | None:
    """Return for which channels the norm of q adds something; None if a channel of q meets its own of k alone."""
    if isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity):
        return None
    bias = getattr(attn.q_norm, "bias", None)
    if bias is None:
        return torch.zeros(attn.proj.in_features, dtype=torch.bool, device=attn.qkv.weight.device)
    shifts: Tensor = (bias.detach() != 0).repeat(attn.num_heads)  # (h,) -> (H*h,)
    return shifts


# ------------------------------------------------------------------------------------------------------------ counting


class EdgeCounts(NamedTuple):
    """What circuits consist of; of P circuits each is `(P,)`, int64 or float64.

    The local density is nan where there are no slots; the density of a model without weights is nan.
    """

    nodes: Tensor
    nodes_by_site: Tensor  # (P, sites) in the order of `Nodes.sites`
    edges: Tensor  # nonzero weights between kept nodes
    edges_by_matrix: Tensor  # (P, matrices) in the order of `Wiring.wires`
    slots: Tensor  # what edges would be in a model without zeros
    paths: Tensor  # channels of which both q and k are kept; not among the edges
    local_density: Tensor  # edges / slots
    density: Tensor  # of the whole model, over the same matrices: the same number for all circuits
    normalised_edges: Tensor  # edges / density
    density_ratio: Tensor  # local_density / density: 1 for a circuit that does not care for weights


def count_edges(wiring: Wiring, masks: Tensor) -> EdgeCounts:
    """Count nodes and edges of circuits.

    Residual identities, products of q and k, norms, embeddings, the head and biases are no edges.

    Args:
        wiring: Which weights of the model are nonzero.
        masks: Which nodes are on, bool `(P, n)`.
    """
    masks = checked(wiring, masks)
    nodes, parts = wiring.nodes, wiring.wires
    by_site = torch.stack([masks[:, site.of].sum(1) for site in nodes.sites], 1)
    by_matrix = torch.stack([part.between(masks) for part in parts], 1)
    edges = by_matrix.sum(1)
    slots = torch.stack([masks[:, part.inputs].sum(1) * masks[:, part.outputs].sum(1) for part in parts]).sum(0)
    sites = [(nodes.site(block, "q").of, nodes.site(block, "k").of) for block in range(len(nodes.heads))]
    paths = torch.stack([(masks[:, q] & masks[:, k]).sum(1) for q, k in sites]).sum(0)
    density = torch.full_like(edges, wiring.density or math.nan, dtype=torch.float64)
    local = edges.double() / slots
    return EdgeCounts(
        masks.sum(1), by_site, edges, by_matrix, slots, paths, local, density, edges / density, local / density
    )


def checked(wiring: Wiring, masks: Tensor) -> Tensor:
    """Return masks where the wiring lies; refuse those that are not yes or no for each node."""
    if masks.dtype != torch.bool or masks.ndim != 2 or masks.shape[1] != wiring.nodes.n:
        raise UserError(
            f"masks are {masks.dtype} of shape {tuple(masks.shape)}: give torch.bool of shape (P, {wiring.nodes.n})"
        )
    return masks.to(wiring.device)
