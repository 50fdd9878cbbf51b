"""Every measure finds its curves, and reads off them what its name says."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from impact_lightning.attribution.curves import CurveEngine
from impact_lightning.attribution.lit_attribution import PROTOCOLS
from impact_lightning.attribution.measures import CURVE_MEASURES, of_curves, of_maps, of_masks
from impact_lightning.attribution.protocols import Chefer, CurveProtocol, Groups, Patch, Rise, Road
from impact_lightning.metrics.curves import Curves
from tests.attribution.curve_models import pictures, relevance, vit

each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)


def curve(protocol: CurveProtocol, name: str, values: list[float], mass: list[float] | None = None) -> Curves:
    """Return a curve of one image, of which the score is 0.9."""
    y, zero = torch.tensor([values], dtype=torch.float64), torch.zeros(1)
    x = torch.linspace(0, 1, len(values), dtype=torch.float64)
    settings = {"name": protocol.name, "area": protocol.area, "curve": name}
    return Curves(y, x, torch.tensor([mass or values]), zero.double() + 0.9, zero, zero, zero, {**settings})


def found(protocol: CurveProtocol, **curves: list[float]) -> dict[str, float]:
    """Return the numbers of hand-made curves."""
    made = {name: curve(protocol, name, values) for name, values in curves.items()}
    return {name: value.item() for name, value in of_curves(protocol, made).items()}


@each_protocol
def test_the_engine_draws_every_curve_that_is_measured(protocol: CurveProtocol) -> None:
    images, labels = pictures(seed=9), torch.tensor([0, 1, 4])  # the blur costs each of them something
    curves = CurveEngine(vit()).subject(images, torch.arange(3), labels=labels).curves(relevance(), protocol)
    numbers = of_curves(protocol, curves)
    assert numbers.keys() == {f"{protocol.name}_{one.name}" for one in CURVE_MEASURES[protocol.name]}
    assert all(values.shape == (3,) and values.isfinite().all() for values in numbers.values())
    used = {name for one in CURVE_MEASURES[protocol.name] for name in one.curves}
    assert used == curves.keys()


def test_every_protocol_is_measured() -> None:
    assert {protocol.name for protocol in PROTOCOLS} == CURVE_MEASURES.keys()


def test_rise() -> None:
    numbers = found(Rise(), insertion=[0.1, 0.5, 0.9], deletion=[0.9, 0.2, 0.1])
    assert numbers == pytest.approx(
        {
            "rise_insertion_auc": 0.5,
            "rise_deletion_auc": 0.35,
            "rise_insertion_auc_normalised": 0.5,
            "rise_insertion_start": 0.1,
        }
    )


def test_chefer() -> None:
    numbers = found(Chefer(), positive=[1.0] + [0.0] * 9, negative=[1.0] * 10)
    assert numbers == pytest.approx({"chefer_positive_auc": 5, "chefer_negative_auc": 90})


def test_patch() -> None:
    numbers = found(
        Patch(), morf=[0.9, 0.3, 0.1], lerf=[0.9, 0.8, 0.1], random=[0.9, 0.6, 0.1], insertion=[0.1, 0.7, 0.9]
    )
    shares = (0.01, 0.05, 0.1, 0.2, 0.5)
    assert numbers == pytest.approx(
        {
            "patch_morf_auc": 0.4,
            "patch_lerf_auc": 0.65,
            "patch_random_order_auc": 0.55,
            "patch_area_between": 0.25,
            "patch_mean_drop": 0.7,
            "patch_comprehensiveness": sum(1.2 * share for share in shares) / 5,
            "patch_sufficiency": sum(0.8 - 1.2 * share for share in shares) / 5,
        }
    )


def test_road() -> None:
    numbers = found(Road(), morf=[0.4, 0.2], lerf=[1.0, 0.6])
    assert numbers == pytest.approx({"road_morf": 0.3, "road_lerf": 0.8, "road_combined": 0.25})


def test_groups() -> None:
    own = curve(Groups(), "groups", [0.4, 0.8, 0.6], mass=[3.0, 2.0, 1.0])  # drops of 0.5, 0.1 and 0.3
    own = own._replace(fractions=torch.full((3,), 1 / 3))
    assert of_curves(Groups(), {"groups": own})["groups_saco"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("protocol", [Groups(3), Groups(3, resolution="patches")])
def test_groups_of_a_constant_map_and_of_one_with_an_offset(protocol: CurveProtocol) -> None:
    subject = CurveEngine(vit()).subject(pictures(), torch.arange(3))
    maps = (8 * relevance()).round() / 8  # such that float32 holds them with the offset as well

    def saco(maps: torch.Tensor) -> torch.Tensor:
        return of_curves(protocol, subject.curves(maps, protocol))["groups_saco"]

    torch.testing.assert_close(saco(maps + 4), saco(maps), rtol=0, atol=1e-9)
    assert saco(torch.full((3, 4, 4), 0.1)).isnan().all()


@dataclass(frozen=True)
class Own(Patch):
    name: ClassVar[str] = "own"


def test_a_protocol_of_ones_own_has_its_areas() -> None:
    assert found(Own(), morf=[1.0, 0.0], lerf=[1.0, 0.5]) == {"own_morf_auc": 0.5, "own_lerf_auc": 0.75}


def test_maps_alone() -> None:
    maps = torch.tensor([[[0.0, 0.0], [0.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    norms = torch.tensor([[[1.0, 1.0], [1.0, 9.0]]]).expand(3, 2, 2)
    numbers = of_maps(maps, norms)
    assert numbers["map_sparseness"].tolist()[:2] == [0.75, 0.0]
    assert numbers["map_complexity"].exp().tolist()[:2] == pytest.approx([1, 4])
    assert numbers["artifact_mass"].tolist()[:2] == [1.0, 0.25]
    assert numbers["constant_map"].tolist() == [0, 1, 1]
    assert numbers["tied_patches"].tolist() == [0.75, 1, 1]
    assert all(numbers[name][2].isnan() for name in ("map_sparseness", "map_complexity", "artifact_mass"))


def test_maps_beside_masks() -> None:
    maps, masks = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    maps[:, 1, 1] = 3.0
    maps[:, 3, 3] = 1.0
    masks[0, 1, 1] = True
    numbers = of_masks(maps, masks)
    assert {name: values[0].item() for name, values in numbers.items()} == {
        "pointing_game": 1.0,
        "energy_in_mask": 0.75,
        "rank_accuracy": 1.0,
        "mask_iou": pytest.approx((1 / 2 + 14 / 15) / 2),
    }
    assert all(values[1].isnan() for values in numbers.values())  # there is no object
