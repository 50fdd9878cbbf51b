"""Linear algebra on sparse codes: sums of weighted rows, dot products of pairs of rows, sums over segments."""

import warnings
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.sae import triton_kernels
from impact_lightning.sae.codes import bounds

CHUNK = 2048  # rows that are summed and changed while they are in cache


class Less(NamedTuple):
    """What to take off sums: `parts[s] · rows[s]`."""

    rows: Tensor  # (S, D)
    parts: Tensor  # (S,)


def weighted_rows(table: Tensor, ids: Tensor, ends: Tensor, weights: Tensor) -> Tensor:
    """Return `out[s] = Σ weights[i] · table[ids[i]]` over `ends[s] <= i < ends[s + 1]`.

    Decoding is this over the rows of a batch, and both weight gradients are this over latents: parallel over segments,
    without atomics, always in the same order.

    Args:
        table: Rows to sum, `(n, D)`.
        ids: Which row each entry takes, `(M,)`.
        ends: Where each segment begins, and the last one's end, `(S + 1,)`.
        weights: Weight of each entry, `(M,)`.
    """
    if table.is_cuda and triton_kernels.are_available():
        return triton_kernels.weighted_rows(table, ids, ends, weights)
    ids, ends = ids.int(), ends.int()  # half as long to read
    return F.embedding_bag(ids, table, ends, mode="sum", per_sample_weights=weights, include_last_offset=True)


def write_weighted_rows(
    out: Tensor, table: Tensor, ids: Tensor, ends: Tensor, weights: Tensor, less: Less | None = None
) -> Tensor:
    """Write `weighted_rows`, minus something that is taken off while they are in cache, to `out`, and return it.

    Memory that is already there matters for weight gradients: fresh memory costs a page fault every 4 KB, which takes
    longer than the sums.
    """
    if table.is_cuda and triton_kernels.are_available():
        triton_kernels.weighted_rows(table, ids, ends, weights, out)
        return out if less is None else out.addcmul_(less.rows, less.parts[:, None], value=-1)
    marks = [*ends[::CHUNK].tolist(), len(ids)]
    for begin, end, start in zip(marks, marks[1:], range(0, len(out), CHUNK), strict=False):
        part = out[start : start + CHUNK]
        task = table, ids[begin:end], ends[start : start + CHUNK + 1] - begin, weights[begin:end]
        if torch.backends.mkl.is_available():
            _write_product(part, *task)
        else:
            part.copy_(weighted_rows(*task))
        if less is not None:
            part.addcmul_(less.rows[start : start + CHUNK], less.parts[start : start + CHUNK, None], value=-1)
    return out


def row_dots(a: Tensor, a_ids: Tensor, b: Tensor, b_ids: Tensor) -> Tensor:
    """Return `⟨a[a_ids[i]], b[b_ids[i]]⟩` for every entry, `(M,)`, where `a_ids` ascends."""
    if a.is_cuda and triton_kernels.are_available():
        return triton_kernels.row_dots(a, a_ids, b, b_ids)
    pattern = _csr(bounds(a_ids, len(a)), b_ids, a.new_zeros(len(b_ids)), len(b))
    dots: Tensor = torch.sparse.sampled_addmm(pattern, a, b.T, beta=0).values()
    return dots


def segment_sums(values: Tensor, ends: Tensor) -> Tensor:
    """Return the sum of each segment of `values`: `(S,)`."""
    return torch.segment_reduce(values, "sum", offsets=ends, unsafe=True)


def _write_product(out: Tensor, table: Tensor, ids: Tensor, ends: Tensor, weights: Tensor) -> None:
    torch.addmm(out, _csr(ends, ids, weights, len(table)), table, beta=0, out=out)


def _csr(ends: Tensor, ids: Tensor, values: Tensor, n_columns: int) -> Tensor:
    _say_that_csr_is_new()
    shape = (len(ends) - 1, n_columns)
    return torch.sparse_csr_tensor(ends.int(), ids.int(), values, shape, check_invariants=False)


@cache
def _say_that_csr_is_new() -> None:
    """Let PyTorch 2.15 say that its CSR tensors are in beta, which it does once, where nobody is in doubt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))
