"""Comprehensiveness and sufficiency read five points off a curve."""

import numpy as np
import pytest
import torch

from impact_lightning.metrics.comprehensiveness import comprehensiveness, sufficiency
from impact_lightning.types import UserError
from tests.metrics.test_area import curve


def test_exact_points_are_read_as_they_are() -> None:
    morf = curve(
        [[0.9, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0]], "trapezoid", fractions=[0, 0.01, 0.05, 0.1, 0.2, 0.5, 1], clean=0.9
    )
    assert comprehensiveness(morf).item() == pytest.approx((0 + 0.2 + 0.4 + 0.6 + 0.8) / 5, abs=1e-7)
    assert torch.equal(sufficiency(morf), comprehensiveness(morf))  # of the curve that each is given


def test_between_points_a_curve_is_straight() -> None:
    y = np.random.default_rng(0).random((2, 29))
    x = np.linspace(0, 1, 29)
    found = comprehensiveness(curve(y.tolist(), "trapezoid"))
    exact = [np.mean([1 - np.interp(q, x, row) for q in (0.01, 0.05, 0.1, 0.2, 0.5)]) for row in y]
    np.testing.assert_allclose(found, exact, atol=1e-12)


def test_a_curve_that_does_not_reach_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.1 to 0\.9"):
        comprehensiveness(curve([[1.0, 0.0]], "mean", fractions=[0.1, 0.9]))
