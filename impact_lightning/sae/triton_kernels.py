"""Kernels for CUDA devices; importing this imports Triton, so it is imported where a CUDA tensor arrives.

Each does what its namesake in plain PyTorch does, in the same order, without atomics: results do not change from run to
run.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDTH = 128  # columns of a program
ENTRIES = 1024  # of a dense tile that one program looks through


@triton.jit
def weighted_rows_kernel(table, ids, bounds, weights, out, n_columns, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803, E501
    """Sum one segment's weighted rows over a block of columns."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < n_columns
    total = tl.zeros((WIDTH,), dtype=out.dtype.element_ty)
    begin, end = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    for entry in range(begin, end):
        row = tl.load(table + tl.load(ids + entry) * n_columns + columns, mask=inside, other=0.0)
        total += tl.load(weights + entry) * row
    tl.store(out + segment * n_columns + columns, total, mask=inside)


@triton.jit
def row_dots_kernel(a, a_ids, b, b_ids, out, n_columns, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803, E501
    """Multiply one pair of rows."""
    entry = tl.program_id(0).to(tl.int64)
    a_row, b_row = tl.load(a_ids + entry) * n_columns, tl.load(b_ids + entry) * n_columns
    total = tl.zeros((WIDTH,), dtype=out.dtype.element_ty)
    for begin in range(0, n_columns, WIDTH):
        columns = begin + tl.arange(0, WIDTH)
        inside = columns < n_columns
        left = tl.load(a + a_row + columns, mask=inside, other=0.0)
        total += left * tl.load(b + b_row + columns, mask=inside, other=0.0)
    tl.store(out + entry, tl.sum(total, axis=0))


@triton.jit
def count_above_kernel(z, least, counts, size, n_rows, PER_ROW: tl.constexpr, ENTRIES: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803, E501
    """Count the entries of a block that exceed their bounds."""
    block = tl.program_id(0).to(tl.int64)
    places = block * ENTRIES + tl.arange(0, ENTRIES)
    inside = places < size
    bound = tl.load(least + (places % n_rows if PER_ROW else places // n_rows), mask=inside, other=0.0)
    above = (tl.load(z + places, mask=inside, other=0.0) > bound) & inside
    tl.store(counts + block, tl.sum(above.to(tl.int32), axis=0))


@triton.jit
def write_above_kernel(z, least, ends, found, values, size, n_rows, PER_ROW: tl.constexpr, ENTRIES: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803, E501
    """Write places and values of the entries that exceed their bounds, in order, before the block's end."""
    block = tl.program_id(0).to(tl.int64)
    places = block * ENTRIES + tl.arange(0, ENTRIES)
    inside = places < size
    bound = tl.load(least + (places % n_rows if PER_ROW else places // n_rows), mask=inside, other=0.0)
    entry = tl.load(z + places, mask=inside, other=0.0)
    above = (entry > bound) & inside
    rank = tl.cumsum(above.to(tl.int32), axis=0)  # from 1
    slot = tl.load(ends + block) - tl.sum(above.to(tl.int32), axis=0) + rank - 1
    tl.store(found + slot, places, mask=above)
    tl.store(values + slot, entry, mask=above)


def weighted_rows(table: Tensor, ids: Tensor, bounds: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """See `sparse.weighted_rows`."""
    table, n_segments, width = table.contiguous(), len(bounds) - 1, table.shape[1]
    out = table.new_empty(n_segments, width) if out is None else out
    if out.numel():
        grid = (n_segments, triton.cdiv(width, WIDTH))
        weighted_rows_kernel[grid](table, ids, bounds, weights, out, width, WIDTH=WIDTH)
    return out


def row_dots(a: Tensor, a_ids: Tensor, b: Tensor, b_ids: Tensor) -> Tensor:
    """See `sparse.row_dots`."""
    out = a.new_empty(len(a_ids))
    if len(out):
        row_dots_kernel[(len(out),)](a.contiguous(), a_ids, b.contiguous(), b_ids, out, a.shape[1], WIDTH=WIDTH)
    return out


def entries_above(z: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ascending flat positions of the entries of `z` above `least`, and their values.

    Args:
        z: A tile, `(T, B)`, contiguous.
        least: Strict lower bounds, `(1, B)` or `(T, 1)`.
    """
    n_blocks, n_rows = triton.cdiv(z.numel(), ENTRIES), z.shape[1]
    options = {"PER_ROW": len(least) == 1 and len(z) != 1, "ENTRIES": ENTRIES}
    counts = torch.zeros(n_blocks, dtype=torch.int64, device=z.device)
    if n_blocks:
        least = least.contiguous() if options["PER_ROW"] else least.expand(len(z), least.shape[1]).contiguous()
        count_above_kernel[(n_blocks,)](z, least, counts, z.numel(), n_rows, **options)
    ends = counts.cumsum(0)
    found = counts.new_empty(int(ends[-1]) if n_blocks else 0)
    values = z.new_empty(len(found))
    if len(found):
        write_above_kernel[(n_blocks,)](z, least, ends, found, values, z.numel(), n_rows, **options)
    return found, values
