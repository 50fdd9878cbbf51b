"""Sensitivity-n, infidelity and max-sensitivity are what their papers define."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata, spearmanr

from impact_lightning.metrics.infidelity import infidelity
from impact_lightning.metrics.max_sensitivity import max_sensitivity, mean_sensitivity
from impact_lightning.metrics.sensitivity_n import mid_ranks, sensitivity_n

RANDOM = np.random.default_rng(0)
MASS, DROPS = RANDOM.normal(size=(3, 50)).round(1), RANDOM.normal(size=(3, 50)).round(1)  # with ties


def test_correlations_are_those_of_scipy() -> None:
    for kind, exact in (("pearson", pearsonr), ("spearman", spearmanr)):
        found = sensitivity_n(torch.from_numpy(MASS), torch.from_numpy(DROPS), kind=kind)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, [exact(*pair)[0] for pair in zip(MASS, DROPS, strict=True)], atol=1e-12)
    np.testing.assert_array_equal(mid_ranks(torch.from_numpy(MASS)), [rankdata(row) for row in MASS])


def test_a_constant_side_has_no_correlation() -> None:
    assert sensitivity_n(torch.ones(1, 4), torch.rand(1, 4)).isnan().all()
    assert sensitivity_n(torch.rand(1, 4), torch.zeros(1, 4)).isnan().all()


def test_infidelity_is_a_mean_square() -> None:
    found = infidelity(torch.from_numpy(MASS), torch.from_numpy(DROPS))
    np.testing.assert_allclose(found, ((MASS - DROPS) ** 2).mean(1))


def test_the_optimal_scale_is_that_of_least_squares_and_a_map_has_no_unit() -> None:
    found = infidelity(torch.from_numpy(MASS), torch.from_numpy(DROPS), optimal_scale=True)
    exact = [np.linalg.lstsq(m[:, None], d, rcond=None)[1][0] / 50 for m, d in zip(MASS, DROPS, strict=True)]
    np.testing.assert_allclose(found, exact)
    np.testing.assert_allclose(
        infidelity(7 * torch.from_numpy(MASS), torch.from_numpy(DROPS), optimal_scale=True), exact
    )
    zeros = infidelity(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), optimal_scale=True)
    assert zeros.item() == 5


def test_max_sensitivity_is_the_largest_relative_change() -> None:
    maps, noisy = torch.from_numpy(RANDOM.normal(size=(2, 3, 4))), torch.from_numpy(RANDOM.normal(size=(2, 5, 3, 4)))
    exact = np.array(
        [
            [np.linalg.norm(copy - own) / np.linalg.norm(own) for copy in copies]
            for own, copies in zip(maps.numpy(), noisy.numpy(), strict=True)
        ]
    )
    np.testing.assert_allclose(max_sensitivity(maps, noisy), exact.max(1))
    np.testing.assert_allclose(mean_sensitivity(maps, noisy), exact.mean(1))
    assert max_sensitivity(torch.zeros(1, 2, 2), torch.ones(1, 1, 2, 2)).isnan().all()


def test_doubling_a_map_changes_no_relative_change() -> None:
    maps, noisy = torch.rand(2, 3, 4), torch.rand(2, 5, 3, 4)
    assert max_sensitivity(2 * maps, 2 * noisy).tolist() == pytest.approx(max_sensitivity(maps, noisy).tolist())
