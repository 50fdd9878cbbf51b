"""Kernels for CUDA devices.

Each does what its namesake in plain PyTorch does, in the same order, without atomics: results do not change from run to
run.
"""
# ruff: noqa: ANN001, ANN201, ANN202 (the arguments of a kernel are pointers, whose types Triton finds)
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls, ignore-missing-imports

from __future__ import annotations  # Triton's types are not evaluated where it is not installed

from importlib.util import find_spec

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton import jit
except ImportError:  # it comes with PyTorch for CUDA, and only tensors on such devices get here

    def jit(kernel):
        """Leave a kernel alone that nobody will call."""
        return kernel


def are_available() -> bool:
    """Return whether Triton is installed."""
    return find_spec("triton") is not None


COLUMNS = 128  # that one program sums
ENTRIES = 1024  # of a dense tile that one program looks through


@jit
def weighted_rows_kernel(table, ids, bounds, weights, out, width, COLUMNS: tl.constexpr):
    """Sum one segment's weighted rows over some columns."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((COLUMNS,), dtype=out.dtype.element_ty)
    for entry in range(tl.load(bounds + segment), tl.load(bounds + segment + 1)):
        row = tl.load(table + tl.load(ids + entry) * width + columns, mask=inside, other=0.0)
        total += tl.load(weights + entry) * row
    tl.store(out + segment * width + columns, total, mask=inside)


@jit
def row_dots_kernel(a, a_ids, b, b_ids, out, width, COLUMNS: tl.constexpr):
    """Multiply one pair of rows."""
    entry = tl.program_id(0).to(tl.int64)
    a_row, b_row = a + tl.load(a_ids + entry) * width, b + tl.load(b_ids + entry) * width
    total = tl.zeros((COLUMNS,), dtype=out.dtype.element_ty)
    for begin in range(0, width, COLUMNS):
        columns = begin + tl.arange(0, COLUMNS)
        left = tl.load(a_row + columns, mask=columns < width, other=0.0)
        total += left * tl.load(b_row + columns, mask=columns < width, other=0.0)
    tl.store(out + entry, tl.sum(total, axis=0))


@jit
def _load_block(z, least, size, n_rows, PER_ROW: tl.constexpr, ENTRIES: tl.constexpr):
    """Return the places of a block, its entries, and which of them exceed their bounds."""
    places = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = places < size
    bound = tl.load(least + (places % n_rows if PER_ROW else places // n_rows), mask=inside, other=0.0)
    entries = tl.load(z + places, mask=inside, other=0.0)
    if z.dtype.element_ty == tl.bfloat16:  # the interpreter compares its bits (Triton 3.9)
        return places, entries, (entries.to(tl.float32) > bound.to(tl.float32)) & inside
    return places, entries, (entries > bound) & inside


@jit
def count_above_kernel(z, least, counts, size, n_rows, PER_ROW: tl.constexpr, ENTRIES: tl.constexpr):
    """Count the entries of a block that exceed their bounds."""
    _, _, above = _load_block(z, least, size, n_rows, PER_ROW, ENTRIES)
    tl.store(counts + tl.program_id(0), tl.sum(above.to(tl.int32), axis=0))


@jit
def write_above_kernel(z, least, ends, found, values, size, n_rows, PER_ROW: tl.constexpr, ENTRIES: tl.constexpr):
    """Write the places and values of those entries, in order, so that the block's last one stands at its end."""
    places, entries, above = _load_block(z, least, size, n_rows, PER_ROW, ENTRIES)
    n_so_far = tl.cumsum(above.to(tl.int64), axis=0)
    slots = tl.load(ends + tl.program_id(0)) - tl.sum(above.to(tl.int64), axis=0) + n_so_far - 1
    tl.store(found + slots, places, mask=above)
    tl.store(values + slots, entries, mask=above)


def weighted_rows(table: Tensor, ids: Tensor, bounds: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """See `sparse.weighted_rows`."""
    table, n_segments, width = table.contiguous(), len(bounds) - 1, table.shape[1]
    out = table.new_empty(n_segments, width) if out is None else out
    if out.numel():
        grid = (n_segments, triton.cdiv(width, COLUMNS))
        weighted_rows_kernel[grid](table, ids, bounds, weights, out, width, COLUMNS=COLUMNS)
    return out


def row_dots(a: Tensor, a_ids: Tensor, b: Tensor, b_ids: Tensor) -> Tensor:
    """See `sparse.row_dots`."""
    out = a.new_empty(len(a_ids))
    if len(out):
        row_dots_kernel[(len(out),)](a.contiguous(), a_ids, b.contiguous(), b_ids, out, a.shape[1], COLUMNS=COLUMNS)
    return out


def entries_above(z: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ascending flat places of the entries of `z` above `least`, and their values.

    Counting first and writing then costs a second look, and saves atomics, sorting, and a guess of how many there are.

    Args:
        z: A tile, `(T, B)`, contiguous.
        least: Strict lower bounds, `(1, B)` or `(T, 1)`.
    """
    n_rows = z.shape[1]
    counts = torch.zeros(triton.cdiv(z.numel(), ENTRIES), dtype=torch.int64, device=z.device)
    per_row = least.shape == (1, n_rows)
    tile = (z, least.contiguous())
    if len(counts):
        count_above_kernel[(len(counts),)](*tile, counts, z.numel(), n_rows, PER_ROW=per_row, ENTRIES=ENTRIES)
    ends = counts.cumsum(0)
    found = counts.new_empty(int(counts.sum()))
    values = z.new_empty(len(found))
    if len(found):
        grid = (len(counts),)
        write_above_kernel[grid](*tile, ends, found, values, z.numel(), n_rows, PER_ROW=per_row, ENTRIES=ENTRIES)
    return found, values
