"""Sparseness, complexity and artifact mass of maps, from values by hand."""

import math

import numpy as np
import pytest
import torch

from impact_lightning.metrics.artifact_mass import artifact_mass, artifact_share
from impact_lightning.metrics.concentration import complexity, map_sparseness
from impact_lightning.types import UserError

MAPS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))


def test_sparseness_is_the_mean_difference_of_all_pairs() -> None:
    for map_, found in zip(MAPS.abs().double().flatten(1).numpy(), map_sparseness(MAPS).tolist(), strict=True):
        pairs = np.abs(map_[:, None] - map_).sum()
        assert found == pytest.approx(pairs / (2 * len(map_) * map_.sum()))


def test_complexity_is_an_entropy_from_zero_to_the_logarithm() -> None:
    share = MAPS[0].abs().double() / MAPS[0].abs().double().sum()
    assert complexity(MAPS)[0].item() == pytest.approx(-(share * share.log()).sum().item())
    one, flat = torch.zeros(1, 4, 5), torch.full((1, 4, 5), -0.5)
    one[0, 2, 3] = 2
    assert complexity(torch.cat([one, flat])).tolist() == pytest.approx([0, math.log(20)])
    assert map_sparseness(torch.cat([one, flat])).tolist() == pytest.approx([0.95, 0])


def test_a_map_of_zeros_has_neither() -> None:
    assert complexity(torch.zeros(1, 4, 5)).isnan().all()
    assert map_sparseness(torch.zeros(1, 4, 5)).isnan().all()


def test_artifact_mass_is_the_share_on_patches_of_outlying_norm() -> None:
    norms = torch.full((2, 2, 3), 10.0)
    norms[0, 0, 1], norms[0, 1, 2] = 31, 29  # one above three times the median
    maps = torch.tensor([[[1.0, 2.0, 1.0], [0.0, -7.0, 4.0]]]).expand(2, -1, -1)
    assert artifact_mass(maps, norms).tolist() == [0.25, 0]
    assert artifact_mass(maps, norms, factor=2).tolist() == [0.75, 0]
    assert artifact_share(norms, factor=2).tolist() == pytest.approx([2 / 6, 0])
    assert artifact_mass(-maps.abs(), norms).isnan().all()


def test_refuses_norms_of_other_patches() -> None:
    with pytest.raises(UserError, match="same patches"):
        artifact_mass(MAPS, MAPS[:, :2])
