"""Wilson's interval covers what it promises."""

import math

import pytest
from scipy.stats import binom, binomtest

from impact_lightning.metrics import wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (713, 1000)])
def test_equals_scipy(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_covers_the_true_share_about_19_times_in_20(p: float) -> None:
    n = 200
    covered = sum(binom.pmf(k, n, p) for k in range(n + 1) if wilson(k, n)[0] <= p <= wilson(k, n)[1])
    assert 0.93 < covered < 0.97


def test_nothing_observed_says_nothing() -> None:
    assert all(map(math.isnan, wilson(0, 0)))
