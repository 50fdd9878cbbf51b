"""Protocols have the constants of their publications, and each result carries them."""

import pytest
import torch

from impact_lightning.attribution.curves import CurveEngine
from impact_lightning.attribution.protocols import Chefer, CurveProtocol, Groups, Patch, Rise, Road
from impact_lightning.attribution.road import Imputed
from impact_lightning.attribution.substrates import Black, BlurGauss, BlurRise, Drop, Mean, Pixels, ZeroNorm
from impact_lightning.metrics.area import area, area_between
from impact_lightning.metrics.curves import Curves
from impact_lightning.types import UserError
from tests.attribution.curve_models import pictures, relevance, vit

PIXELS = 224 * 224


def test_rise_removes_rows_of_pixels_to_zero_and_inserts_from_its_blur() -> None:
    runs = Rise().runs(PIXELS)
    assert (runs["deletion"].substrate, runs["insertion"].substrate) == (ZeroNorm(), BlurRise(11, 5.0))
    assert len(runs["deletion"].removed) == 225
    assert runs["deletion"].removed[:3] == ((0, 0), (0, 224), (0, 448))
    assert runs["insertion"].removed[:2] == ((0, PIXELS), (224, PIXELS))
    assert runs["insertion"].removed[-1] == (PIXELS, PIXELS)
    assert len(Rise(1792).runs(PIXELS)["deletion"].removed) == 29
    assert Rise().runs(1000)["deletion"].changed == (0, 224, 448, 672, 896, 1000)
    assert (Rise.score, Rise.area, Rise.resolution) == ("probability", "rise", "pixels")


def test_chefer_removes_up_to_nine_tenths_in_both_orders() -> None:
    runs = Chefer().runs(PIXELS)
    counts = [int(PIXELS * fraction) for fraction in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]
    assert list(runs["positive"].changed) == counts
    assert runs["positive"].removed == tuple((0, count) for count in counts)
    assert runs["negative"].removed == tuple((PIXELS - count, PIXELS) for count in counts)
    assert runs["positive"].substrate == Black()
    assert (Chefer.score, Chefer.area) == ("accuracy", "chefer")


def test_patch_removes_patches_in_three_orders() -> None:
    runs = Patch(step=50).runs(196)
    assert runs["morf"].removed == ((0, 0), (0, 50), (0, 100), (0, 150), (0, 196))
    assert runs["lerf"].removed == ((196, 196), (146, 196), (96, 196), (46, 196), (0, 196))
    assert runs["random"] == runs["morf"]._replace(ranking="random")
    assert runs["insertion"].removed == ((0, 196), (50, 196), (100, 196), (150, 196), (196, 196))
    assert Patch(start=BlurRise()).runs(196)["insertion"].substrate == BlurRise()


def test_road_imputes_a_tenth_to_nine_tenths() -> None:
    runs = Road().runs(PIXELS)
    assert runs["morf"].changed == tuple(PIXELS * tenths // 10 for tenths in range(1, 10))
    assert runs["morf"].substrate == Imputed(0.01, 0)
    assert (Road().score, Road.area) == ("accuracy", "mean")


def test_groups_are_equal_and_alone() -> None:
    run = Groups().runs(196)["groups"]
    assert run.removed[0] == (0, 19)
    assert run.removed[-1] == (176, 196)
    assert sum(run.changed) == 196
    assert {*run.changed} == {19, 20}
    assert run.substrate == Mean()


def drawn(protocol: CurveProtocol) -> dict[str, Curves]:
    engine = CurveEngine(vit(), pixels=Pixels((0.5,) * 3, (0.5,) * 3))
    return engine.subject(pictures(), torch.arange(3), labels=torch.tensor([0, 1, 2])).curves(relevance(), protocol)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Rise(32), Rise(64)),
        (Patch(2), Patch(4)),
        (Patch(substrate=BlurGauss(1.0)), Patch(substrate=BlurGauss(2.0))),
        (Patch(score="logit"), Patch()),
        (Road(noise=0.0), Road()),
        (Road(seed=1), Road()),
        (Road(score="probability"), Road()),
        (Road(resolution="patches"), Road()),
        (Groups(3), Groups(4)),
        (Chefer(), Rise()),
    ],
)
def test_every_setting_is_part_of_the_result(one: CurveProtocol, other: CurveProtocol) -> None:
    mine, theirs = (next(iter(drawn(protocol).values())).protocol for protocol in (one, other))
    assert mine != theirs
    assert (mine["name"], mine["version"]) == (one.name, one.version)


def test_the_seed_of_a_random_order_is_part_of_that_curve_alone() -> None:
    mine, theirs = drawn(Patch(seed=0)), drawn(Patch(seed=1))
    assert mine["random"].protocol != theirs["random"].protocol
    assert mine["morf"].protocol == theirs["morf"].protocol


def test_orders_of_one_protocol_compare_and_those_of_two_do_not() -> None:
    mine, theirs = drawn(Patch(2)), drawn(Patch(4))
    torch.testing.assert_close(area_between(mine["morf"], mine["lerf"]), area(mine["lerf"]) - area(mine["morf"]))
    with pytest.raises(UserError, match="points is 9 and 5"):
        area_between(mine["morf"], theirs["lerf"])


def test_refuses_settings_without_a_meaning() -> None:
    for make in (lambda: Rise(0), lambda: Patch(0), lambda: Groups(1), lambda: Patch(substrate=Imputed())):
        with pytest.raises(UserError):
            make()
    for substrate, start in ((Drop(), BlurRise()), (Mean(), Drop()), (ZeroNorm(), Drop())):
        with pytest.raises(UserError, match="Drop is both substrate and start"):
            Patch(substrate=substrate, start=start)
    assert Patch(substrate=Drop()).runs(4) == Patch(substrate=Drop(), start=Drop()).runs(4)
    with pytest.raises(UserError, match="too many"):
        drawn(Groups(17, resolution="patches"))
