"""Scores of localisation equal loops over pixels, and a map that says nothing scores by chance."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.metrics.energy_in_mask import energy_in_mask
from impact_lightning.metrics.object_masks import area_share
from impact_lightning.metrics.pointing_game import pointing_game
from impact_lightning.metrics.rank_accuracy import rank_accuracy
from impact_lightning.metrics.segmentation import segmentation
from impact_lightning.types import UserError

H, W = 24, 32
Metric = Callable[[Tensor, Tensor], Tensor]
METRICS: list[Metric] = [
    pointing_game,
    energy_in_mask,
    rank_accuracy,
    lambda maps, masks: segmentation(maps, masks).iou,
    lambda maps, masks: segmentation(maps, masks).pixel_accuracy,
]


def maps(n: int = 5, h: int = 6, w: int = 8) -> Tensor:
    return torch.randn(n, h, w, generator=torch.Generator().manual_seed(0))


def masks(n: int = 5) -> Tensor:
    y, x = torch.arange(H)[:, None], torch.arange(W)
    found = [(y - 5 - i).abs() + (x - 6 - 4 * i).abs() < 4 + i for i in range(n)]
    return torch.stack(found)


def pixels() -> np.ndarray:
    return F.interpolate(maps()[:, None], (H, W), mode="bilinear", align_corners=False)[:, 0].numpy()


def test_each_score_equals_a_loop_over_pixels() -> None:
    inside = masks().numpy()
    for i, relevance in enumerate(pixels()):
        mask, area = inside[i], inside[i].sum()
        peak = np.unravel_index(relevance.argmax(), relevance.shape)
        assert pointing_game(maps(), masks())[i] == mask[peak]
        positive = sum(max(value, 0.0) for value in relevance.ravel().tolist())
        own = sum(max(value, 0.0) for value in relevance[mask].tolist())
        assert energy_in_mask(maps(), masks())[i].item() == pytest.approx(own / positive)
        top = np.argsort(-relevance.ravel(), kind="stable")[:area]
        assert rank_accuracy(maps(), masks())[i].item() == pytest.approx(mask.ravel()[top].mean())
        found = relevance > relevance.astype(np.float64).mean()
        object_iou = (found & mask).sum() / (found | mask).sum()
        background_iou = (~found & ~mask).sum() / (~found | ~mask).sum()
        result = segmentation(maps(), masks())
        assert result.iou[i].item() == pytest.approx((object_iou + background_iou) / 2)
        assert result.pixel_accuracy[i].item() == pytest.approx((found == mask).mean())


def test_the_tolerance_is_a_distance_from_the_object() -> None:
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, 20, 10:13] = True
    for y, x, tolerance, is_hit in ((20, 27, 15, 1), (20, 28, 15, 0), (29, 24, 15, 1), (30, 24, 15, 0), (21, 11, 0, 0)):
        map_ = torch.zeros(1, 40, 40)
        map_[0, y, x] = 1
        assert pointing_game(map_, mask, tolerance=tolerance).item() == is_hit


def test_a_map_that_is_the_object_scores_full_marks_and_its_reverse_none() -> None:
    perfect = masks().float()
    for metric in METRICS:
        torch.testing.assert_close(metric(perfect, masks()), torch.ones(5, dtype=torch.float64))
    for metric in (pointing_game, rank_accuracy):
        assert (metric(-perfect, masks()) == 0).all()


def test_a_constant_map_scores_the_area_of_the_object() -> None:
    flat = torch.ones(5, 6, 8)
    for metric in (pointing_game, energy_in_mask):
        torch.testing.assert_close(metric(flat, masks()), area_share(masks()))


def test_large_objects_are_left_out_of_the_game_alone() -> None:
    large = torch.ones(1, H, W, dtype=torch.bool)
    large[0, :5] = False
    assert pointing_game(maps(1), large).isnan().all()
    assert not energy_in_mask(maps(1), large).isnan().any()


@pytest.mark.parametrize("metric", METRICS)
def test_without_an_object_there_is_no_score(metric: Metric) -> None:
    empty = masks()
    empty[2] = False
    found = metric(maps(), empty)
    assert found.isnan().tolist() == [False, False, True, False, False]
    torch.testing.assert_close(found[[0, 1, 3, 4]], metric(maps(), masks())[[0, 1, 3, 4]])


def test_negative_relevance_is_no_energy() -> None:
    assert energy_in_mask(-maps().abs(), masks()).isnan().all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "bad", [maps(4), maps(5, 7, 8), maps(5, 8, 8), maps()[:, None], torch.full((5, 6, 8), torch.nan)]
)
def test_refuses_maps_that_do_not_fit_or_are_not_finite(metric: Metric, bad: Tensor) -> None:
    with pytest.raises(UserError, match="maps"):
        metric(bad, masks())
