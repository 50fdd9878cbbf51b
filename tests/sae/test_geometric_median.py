"""The geometric median is the point with the least sum of distances."""

import torch
from scipy.optimize import minimize

from impact_lightning.sae.geometric_median import geometric_median


def test_equals_a_numerical_minimum() -> None:
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:5] += 100  # outliers
    rows = x.numpy()
    found = minimize(lambda m: float(((rows - m) ** 2).sum(1).__pow__(0.5).sum()), rows.mean(0), tol=1e-12)
    torch.testing.assert_close(geometric_median(x), torch.from_numpy(found.x), rtol=0, atol=1e-4)


def test_does_not_depend_on_order_and_follows_shift_and_scale() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    median = geometric_median(x)
    torch.testing.assert_close(geometric_median(x.flip(0)), median)
    torch.testing.assert_close(geometric_median(3 * x + 7), 3 * median + 7)


def test_a_median_on_one_of_the_rows_is_found() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(geometric_median(x), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_equal_rows_are_their_own_median() -> None:
    assert torch.equal(geometric_median(torch.full((4, 2), 5.0)), torch.full((2,), 5.0))
