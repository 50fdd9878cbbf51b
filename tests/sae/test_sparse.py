"""Sums and products on sparse codes equal their dense counterparts."""

import pytest
import torch
from torch import Tensor

from impact_lightning.sae import sparse
from impact_lightning.sae.codes import bounds
from impact_lightning.sae.sparse import Less, row_dots, segment_sums, weighted_rows, write_weighted_rows


def sums(dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return arguments, and the sums of a loop."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(-4, 5, (6, 5), generator=generator).to(dtype)
    segments = torch.tensor([0, 0, 0, 2, 2, 5, 7])  # some are empty, also the last
    ids, weights = torch.tensor([5, 0, 3, 3, 1, 2, 2]), torch.arange(1, 8).to(dtype)
    want = torch.zeros(9, 5, dtype=dtype)
    for segment, row, weight in zip(segments, ids, weights, strict=True):
        want[segment] += weight * table[row]
    return (table, ids, bounds(segments, 9), weights), want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_rows_equal_a_loop(dtype: torch.dtype) -> None:
    task, want = sums(dtype)
    assert torch.equal(weighted_rows(*task), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 3, 1024])
@pytest.mark.parametrize("has_mkl", [True, False])
def test_written_rows_equal_a_loop(
    dtype: torch.dtype, chunk: int, has_mkl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "CHUNK", chunk)
    if not has_mkl:
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    task, want = sums(dtype)
    assert torch.equal(write_weighted_rows(torch.full_like(want, torch.nan), *task), want)
    rows, parts = torch.ones(9, 5, dtype=dtype), torch.arange(9).to(dtype)
    out = write_weighted_rows(torch.full_like(want, torch.nan), *task, less=Less(rows, parts))
    assert torch.equal(out, want - parts[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_dots_equal_a_gathered_product(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-4, 5, (n, 70), generator=generator).to(dtype) for n in (6, 9))
    a_ids = torch.randint(0, 5, (50,), generator=generator).sort().values  # the last row of a is not asked for
    b_ids = torch.randint(0, 9, (50,), generator=generator)
    assert torch.equal(row_dots(a, a_ids, b, b_ids), (a[a_ids] * b[b_ids]).sum(-1))


def test_there_may_be_no_pairs_of_rows() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert row_dots(torch.ones(3, 2), none, torch.ones(4, 2), none).shape == (0,)


def test_segment_sums_give_zero_for_empty_segments() -> None:
    found = segment_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2, 3, 3]))
    assert found.tolist() == [0, 3, 4, 0]


def test_nothing_sums_to_zero() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    found = weighted_rows(torch.ones(3, 2), empty, torch.zeros(5, dtype=torch.int64), torch.empty(0))
    assert torch.equal(found, torch.zeros(4, 2))
