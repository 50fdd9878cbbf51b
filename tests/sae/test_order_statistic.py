"""The n-th largest number is found by counting, on any number of ranks."""

import pytest
import torch

from impact_lightning.ranks import all_sum
from impact_lightning.sae.order_statistic import Cut, float_bits, float_of, nth_largest
from tests.distributed import run_distributed


def by_sorting(values: torch.Tensor, n: int) -> tuple[float, int, int]:
    cut = values.sort(descending=True).values[n - 1]
    return float(cut), int((values > cut).sum()), int((values == cut).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 57, 199, 200])
def test_equals_sorting(dtype: torch.dtype, n: int) -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=dtype).abs()
    values[50:120] = values[3]  # ties
    cut = nth_largest(float_bits(values), n, all_sum)
    assert cut is not None
    assert (float_of(cut.bits, dtype), cut.n_above, cut.n_equal) == by_sorting(values, n)
    assert cut.n_found == 200


@pytest.mark.parametrize("n", [0, 4])
def test_there_is_none_beyond_the_numbers(n: int) -> None:
    assert nth_largest(torch.tensor([3, 1, 2]), n, all_sum) is None


def test_of_nothing_there_is_none() -> None:
    assert nth_largest(torch.tensor([], dtype=torch.int64), 1, all_sum) is None


def cut_of_rank(rank: int, bits: torch.Tensor, n: int) -> tuple[int, ...]:
    own = bits[:0] if rank == 2 else bits[rank::4]  # one rank has nothing
    cut = nth_largest(own, n, all_sum)
    assert cut is not None
    return tuple(cut)


def test_four_ranks_agree_with_one() -> None:
    bits = torch.randint(0, 2**40, (300,), generator=torch.Generator().manual_seed(0))
    bits = torch.cat([bits, bits[:100]])
    bits[2::4] = 0
    whole = nth_largest(bits[bits > 0], 120, all_sum)
    assert isinstance(whole, Cut)
    assert run_distributed(cut_of_rank, bits, 120, world_size=4) == [tuple(whole)] * 4
