"""Linear algebra on sparse codes: sums of weighted rows, dot products of pairs of rows, sums over segments."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.sae import triton_kernels

CHUNK = 1024  # segments per call: a chunk is copied to its place while it is still in cache


class Less(NamedTuple):
    """What to take off sums: `parts[s] · rows[s]`."""

    rows: Tensor  # (S, D)
    parts: Tensor  # (S,)


def weighted_rows(table: Tensor, ids: Tensor, bounds: Tensor, weights: Tensor) -> Tensor:
    """Return `out[s] = Σ weights[i] · table[ids[i]]` over `bounds[s] <= i < bounds[s + 1]`.

    Decoding is this over the rows of a batch, and both weight gradients are this over latents: parallel over segments,
    without atomics, always in the same order.

    Args:
        table: Rows to sum, `(n, D)`.
        ids: Which row each entry takes, `(M,)`.
        bounds: Where each segment begins, and the last one's end, `(S + 1,)`.
        weights: Weight of each entry, `(M,)`.
    """
    if table.is_cuda and triton_kernels.are_available():
        return triton_kernels.weighted_rows(table, ids, bounds, weights)
    return F.embedding_bag(ids, table, bounds, mode="sum", per_sample_weights=weights, include_last_offset=True)


def write_weighted_rows(
    out: Tensor, table: Tensor, ids: Tensor, bounds: Tensor, weights: Tensor, less: Less | None = None
) -> Tensor:
    """Write `weighted_rows`, minus something that is taken off in the same pass, to `out`, `(S, D)`, and return it."""
    if table.is_cuda and triton_kernels.are_available():
        triton_kernels.weighted_rows(table, ids, bounds, weights, out)
        return out if less is None else out.addcmul_(less.rows, less.parts[:, None], value=-1)
    edges = [*bounds[::CHUNK].tolist(), len(ids)]
    for begin, end, start in zip(edges, edges[1:], range(0, len(out), CHUNK), strict=False):
        chunk = slice(start, start + CHUNK)
        ends = bounds[start : start + CHUNK + 1] - begin
        sums = weighted_rows(table, ids[begin:end], ends, weights[begin:end])
        if less is None:
            out[chunk] = sums
        else:
            torch.addcmul(sums, less.rows[chunk], less.parts[chunk, None], value=-1, out=out[chunk])
    return out


def row_dots(a: Tensor, a_ids: Tensor, b: Tensor, b_ids: Tensor) -> Tensor:
    """Return `⟨a[a_ids[i]], b[b_ids[i]]⟩` for every entry: `(M,)`.

    Fast where `a_ids` ascends, so that the larger table is read once and in order.
    """
    if a.is_cuda and triton_kernels.are_available():
        return triton_kernels.row_dots(a, a_ids, b, b_ids)
    # embedding_bag's own gradient with respect to its weights: gathers nothing, unlike (a[i] * b[j]).sum(-1).
    unused = a_ids.new_zeros(1)
    dots: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(a, b, b_ids, unused, a_ids, 0)
    return dots


def segment_sums(values: Tensor, bounds: Tensor) -> Tensor:
    """Return the sum of each segment of `values`: `(S,)`."""
    return torch.segment_reduce(values, "sum", offsets=bounds, unsafe=True)
