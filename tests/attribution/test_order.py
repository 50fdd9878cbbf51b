"""Ranks descend, ties go by the raster, and both ties and constant maps are counted."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from impact_lightning.attribution.order import order, random_order, tied_share
from impact_lightning.types import UserError


def maps(n: int = 3, side: int = 14) -> torch.Tensor:
    return torch.randn(n, side, side, generator=torch.Generator().manual_seed(0))


def test_equals_a_stable_sort_of_numpy() -> None:
    coarse = (maps() * 2).round()
    found = order(coarse, (14, 14))
    for image in range(3):
        flat = coarse[image].flatten().numpy()
        places = np.argsort(-flat, kind="stable")
        assert found.rank[image].flatten()[places].tolist() == list(range(196))
        assert found.relevance[image].tolist() == flat[places].tolist()
        assert found.ties[image] == 196 - len(np.unique(flat))


def test_maps_of_patches_are_upsampled_bilinearly_in_single_precision() -> None:
    pixels = F.interpolate(maps()[:, None], (224, 224), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(order(maps(), (224, 224)).rank, order(pixels, (224, 224)).rank)
    # ties are of single precision whatever comes in; half precision would tie nine of ten pixels
    share = order(maps().half(), (224, 224)).ties / 224**2
    assert ((share > 0.05) & (share < 0.2)).all()


def test_ties_go_by_the_raster_or_by_a_seed() -> None:
    flat = torch.zeros(1, 4, 4)
    assert order(flat, (4, 4)).rank.flatten().tolist() == list(range(16))
    drawn = [order(flat, (4, 4), tie_seed=seed).rank.flatten().tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[2]) == list(range(16))
    assert torch.equal(order(maps(), (14, 14), tie_seed=3).rank, order(maps(), (14, 14)).rank)


def test_constant_maps_are_counted_and_ranked() -> None:
    some = maps()
    some[1] = 0.5
    found = order(some, (28, 28))
    assert found.is_constant.tolist() == [False, True, False]
    assert found.ties[1] == 28 * 28 - 1
    assert found.rank[1].flatten().tolist() == list(range(28 * 28))


def test_a_random_order_depends_on_the_image_and_not_on_the_batch() -> None:
    rows = torch.tensor([7, 3, 9])
    known = order(maps(), (14, 14))
    drawn = random_order(known, rows)
    alone = random_order(order(maps()[1:2], (14, 14)), rows[1:2])
    assert torch.equal(drawn.rank[1], alone.rank[0])
    assert not torch.equal(drawn.rank[0], drawn.rank[1])
    # the relevance of a unit goes where the unit goes
    of_unit = drawn.relevance.gather(1, drawn.rank.flatten(1)).view(3, 14, 14)
    assert torch.equal(of_unit, maps().double())


def test_tied_patches_are_counted_whether_first_or_not() -> None:
    coarse = (maps() * 2).round()
    for image, share in zip(coarse, tied_share(coarse), strict=True):
        _, counts = np.unique(image.numpy(), return_counts=True)
        assert share.item() == pytest.approx(counts[counts > 1].sum() / 196)
    assert tied_share(maps()).tolist() == [0, 0, 0]
    assert tied_share(torch.ones(1, 1, 1)).tolist() == [0]  # there is no other one
    close = torch.tensor([[[1.0, 1.0 + 1e-12]]], dtype=torch.float64)
    assert tied_share(close).tolist() == [1]  # ranks are of single precision


@pytest.mark.parametrize("size", [(15, 14), (7, 7), (28, 14), (210, 224)])
def test_refuses_maps_that_do_not_fit(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="14 x 14"):
        order(maps(), size)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_relevance_that_is_not_finite_and_names_the_image(bad: float) -> None:
    some = maps()
    some[2, 0, 0] = bad
    with pytest.raises(UserError, match="image 2"):
        order(some, (14, 14))


@pytest.mark.parametrize("bad", [torch.zeros(3, 1, 4, 4), torch.zeros(3, 4, 4, dtype=torch.long)])
def test_refuses_what_is_no_map(bad: torch.Tensor) -> None:
    with pytest.raises(UserError, match="maps must be"):
        order(bad, (4, 4))
