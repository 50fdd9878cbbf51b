"""Measures: which numbers of each image are read off its curves, and off its map."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from impact_lightning.attribution.order import tied_share
from impact_lightning.attribution.protocols import CurveProtocol
from impact_lightning.metrics.area import area, area_between, combined, mean_drop, normalised_area, start
from impact_lightning.metrics.artifact_mass import artifact_mass
from impact_lightning.metrics.comprehensiveness import comprehensiveness, sufficiency
from impact_lightning.metrics.concentration import complexity, map_sparseness
from impact_lightning.metrics.curves import Curves
from impact_lightning.metrics.energy_in_mask import energy_in_mask
from impact_lightning.metrics.pointing_game import pointing_game
from impact_lightning.metrics.rank_accuracy import rank_accuracy
from impact_lightning.metrics.saco import saco
from impact_lightning.metrics.segmentation import segmentation


class CurveMeasure(NamedTuple):
    """A number that curves of a protocol have."""

    name: str
    score: Callable[..., Tensor]  # of curves, one number for each image (B,)
    curves: tuple[str, ...]


CURVE_MEASURES: Mapping[str, tuple[CurveMeasure, ...]] = {
    "rise": (
        CurveMeasure("insertion_auc", area, ("insertion",)),
        CurveMeasure("deletion_auc", area, ("deletion",)),
        CurveMeasure("insertion_auc_normalised", normalised_area, ("insertion",)),
        CurveMeasure("insertion_start", start, ("insertion",)),
    ),
    "chefer": (
        CurveMeasure("positive_auc", area, ("positive",)),
        CurveMeasure("negative_auc", area, ("negative",)),
    ),
    "patch": (
        CurveMeasure("morf_auc", area, ("morf",)),
        CurveMeasure("lerf_auc", area, ("lerf",)),
        CurveMeasure("random_order_auc", area, ("random",)),
        CurveMeasure("area_between", area_between, ("morf", "lerf")),
        CurveMeasure("mean_drop", mean_drop, ("morf",)),
        CurveMeasure("comprehensiveness", comprehensiveness, ("morf",)),
        CurveMeasure("sufficiency", sufficiency, ("insertion",)),
    ),
    "road": (
        CurveMeasure("morf", area, ("morf",)),
        CurveMeasure("lerf", area, ("lerf",)),
        CurveMeasure("combined", combined, ("morf", "lerf")),
    ),
    "groups": (CurveMeasure("saco", saco, ("groups",)),),
}
VERSIONS: Mapping[str, int] = {  # of definitions that have changed; the first is 1
    "groups_saco": 2,  # the relevance of a group is a mean
    "rise_insertion_auc_normalised": 2,  # undefined without a margin between blur and image
}


def version_of(measure: str) -> int:
    """Return the version of a measure, also where it is of randomised models or above random maps.

    Example:
        >>> version_of("groups_saco_above_random"), version_of("map_sparseness")
        (2, 1)
    """
    return next((version for name, version in VERSIONS.items() if name in measure), 1)


def of_curves(protocol: CurveProtocol, curves: Mapping[str, Curves]) -> dict[str, Tensor]:
    """Return the numbers of a protocol's curves by name, `(B,)` each; of an unknown protocol the areas that it has."""
    areas = () if protocol.area == "none" else tuple(CurveMeasure(f"{name}_auc", area, (name,)) for name in curves)
    return {
        f"{protocol.name}_{one.name}": one.score(*(curves[name] for name in one.curves))
        for one in CURVE_MEASURES.get(protocol.name, areas)
    }


def of_maps(maps: Tensor, norms: Tensor) -> dict[str, Tensor]:
    """Return what maps `(B, gh, gw)` are like by themselves, `(B,)` each.

    Args:
        maps: Relevance of patches.
        norms: Norms of their tokens at the end of the model `(B, gh, gw)`.
    """
    return {
        "map_sparseness": map_sparseness(maps),
        "map_complexity": complexity(maps),
        "artifact_mass": artifact_mass(maps, norms),
        "tied_patches": tied_share(maps),  # share whose rank the raster decides
        "constant_map": (maps == maps[:, :1, :1]).flatten(1).all(1).double(),  # 1 where it has no order of its own
    }


def of_masks(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Return where maps `(B, gh, gw)` lie beside masks of objects `(B, h, w)`, `(B,)` each."""
    return {
        "pointing_game": pointing_game(maps, masks),
        "energy_in_mask": energy_in_mask(maps, masks),
        "rank_accuracy": rank_accuracy(maps, masks),
        "mask_iou": segmentation(maps, masks).iou,
    }
