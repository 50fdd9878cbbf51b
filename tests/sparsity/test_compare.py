"""Comparisons are the same wherever they are made."""

import pytest
import torch

from impact_lightning.sparsity.compare import at_least, between, count_above, kth_largest, kth_lowest, zero_where_not

DTYPES = [torch.float32, torch.float64, torch.bfloat16]  # NumPy has no bfloat16: torch compares


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bound", [0.3, 0.5, float("nan"), float("inf")])
def test_they_are_those_of_single_numbers(dtype: torch.dtype, bound: float) -> None:
    x = (torch.rand(200, generator=torch.Generator().manual_seed(0)) * 10).round().div(10).to(dtype)
    same = float(torch.tensor(bound, dtype=dtype))  # as the tensor sees it
    numbers = x.tolist()
    assert at_least(x, same).tolist() == [number >= same for number in numbers]
    assert count_above(x, same) == sum(number > same for number in numbers)
    assert between(x, same - 0.25, same).tolist() == [n for n in numbers if same - 0.25 <= n <= same]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 2, 100, 199, 200])
def test_the_kth_largest_is_that_of_a_sort(dtype: torch.dtype, k: int) -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(k)).to(dtype)
    before = x.clone()
    assert kth_largest(x, k) == sorted(x.tolist(), reverse=True)[k - 1]
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_kth_lowest_of_rows_is_that_of_their_sorts(dtype: torch.dtype, k: int) -> None:
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(k)).to(dtype)
    assert kth_lowest(x, k).tolist() == [[sorted(row)[k - 1]] for row in x.tolist()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_have_no_sign(dtype: torch.dtype) -> None:
    x = torch.tensor([[-1.0, 2.0], [-3.0, 4.0]], dtype=dtype)
    zero_where_not(x, torch.tensor([[False, True], [True, False]]))
    assert x.tolist() == [[0.0, 2.0], [-3.0, 0.0]]
    assert not torch.signbit(x[0, 0])
