"""Each convention of areas has its value by hand, and areas of two conventions are not mixed."""

import pickle
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pytest
import torch
from torchmetrics import MetricCollection

from impact_lightning.metrics.area import area, area_between, combined, mean_drop, normalised_area
from impact_lightning.metrics.curves import Curves, CurveScore
from impact_lightning.types import UserError


def curve(
    values: Sequence[Sequence[float]],
    kind: str,
    *,
    name: str = "morf",
    fractions: Sequence[float] | None = None,
    clean: float = 1.0,
    first: int = 0,
) -> Curves:
    y = torch.tensor(values, dtype=torch.float64)
    n, points = y.shape
    x = (
        torch.linspace(0, 1, points, dtype=torch.float64)
        if fractions is None
        else torch.tensor(fractions, dtype=torch.float64)
    )
    counts = torch.zeros(n, dtype=torch.long)
    return Curves(
        values=y,
        fractions=x,
        mass=torch.zeros_like(y),
        clean=torch.full((n,), clean, dtype=torch.float64),
        ties=counts,
        is_constant=counts.bool(),
        rows=first + torch.arange(n),
        protocol={"name": "some", "version": 1, "curve": name, "area": kind},
    )


def test_rise_counts_a_short_last_step_as_a_whole_one() -> None:
    # 10 units in steps of 4: (1 + .6 + .2 + .1 - .5 - .05) / 3
    short = curve([[1.0, 0.6, 0.2, 0.1]], "rise", fractions=[0, 0.4, 0.8, 1.0])
    assert area(short).item() == pytest.approx(0.45)
    # over true fractions: .4 * .8 + .4 * .4 + .2 * .15
    true = short._replace(protocol=short.protocol | {"area": "trapezoid"})
    assert area(true).item() == pytest.approx(0.51)


def test_chefer_goes_to_ninety() -> None:
    # accuracy 0.8 clean, falling by .05 a step: 100 * .1 * (.8/2 + .75 + ... + .40 + .35/2)
    y = [0.8 - 0.05 * i for i in range(10)]
    assert area(curve([y], "chefer")).item() == pytest.approx(51.75)
    assert area(curve([[1.0] * 10], "chefer")).item() == pytest.approx(90)
    with pytest.raises(ValueError, match="ten points"):
        area(curve([[1.0] * 9], "chefer"))


def test_road_is_the_mean_of_its_points_and_half_the_difference() -> None:
    morf = curve([[0.9, 0.5, 0.1]], "mean")
    lerf = curve([[1.0, 0.9, 0.5]], "mean", name="lerf")
    assert area(morf).item() == pytest.approx(0.5)
    assert combined(morf, lerf).item() == pytest.approx(0.15)


def test_the_area_between_is_that_of_whole_curves() -> None:
    morf = curve([[1.0, 0.2, 0.0], [1.0, 1.0, 0.0]], "trapezoid")
    lerf = curve([[1.0, 0.8, 0.0], [1.0, 0.0, 0.0]], "trapezoid", name="lerf")
    assert area_between(morf, lerf).tolist() == pytest.approx([0.3, -0.5])


def test_a_normalised_insertion_goes_from_its_start_to_the_image() -> None:
    # (0, .5, 1.25, 1) between .4 and .8, trapezoid over thirds
    insertion = curve([[0.4, 0.6, 0.9, 0.8]], "trapezoid", clean=0.8)
    assert normalised_area(insertion).item() == pytest.approx((0.25 + 0.875 + 1.125) / 3)
    assert normalised_area(curve([[0.8, 0.8]], "trapezoid", clean=0.8)).isnan().all()


@pytest.mark.parametrize(
    ("start", "is_defined"), [(0.8, False), (0.795, False), (0.805, False), (0.9, False), (0.78, True)]
)
def test_an_insertion_that_starts_hardly_lower_than_the_image_is_not_normalised(start: float, is_defined: bool) -> None:
    found = normalised_area(curve([[start, 0.2, 0.8]], "trapezoid", clean=0.8))
    assert found.isfinite().item() is is_defined


def test_the_mean_drop_leaves_the_start_out() -> None:
    assert mean_drop(curve([[0.9, 0.5, 0.1]], "trapezoid", clean=0.9)).item() == pytest.approx(0.6)


def test_curves_without_an_area_are_refused() -> None:
    with pytest.raises(UserError, match="no area"):
        area(curve([[1.0, 0.5]], "none"))


def test_a_metric_takes_its_curves_by_name_and_gives_their_mean() -> None:
    metric, between = CurveScore(area, "morf"), CurveScore(area_between, "morf", "lerf")
    for first, y in ((0, [[1.0, 0.0], [1.0, 0.5]]), (2, [[0.5, 0.5]])):
        both = {
            "morf": curve(y, "trapezoid", first=first),
            "lerf": curve([[1.0, 1.0]] * len(y), "trapezoid", name="lerf", first=first),
        }
        metric.update(both)
        between.update(both)
    assert metric.compute().mean.item() == pytest.approx((0.5 + 0.75 + 0.5) / 3)
    assert between.compute().mean.item() == pytest.approx((0.5 + 0.25 + 0.5) / 3)
    assert metric.compute().n.item() == 3


def test_a_metric_refuses_a_second_protocol_and_an_unknown_curve() -> None:
    metric = CurveScore(area, "morf")
    metric.update({"morf": curve([[1.0, 0.0]], "trapezoid")})
    with pytest.raises(UserError, match="area is 'trapezoid' and 'rise'"):
        metric.update({"morf": curve([[1.0, 0.0]], "rise")})
    with pytest.raises(UserError, match="no curve 'morf'"):
        metric.update({"lerf": curve([[1.0, 0.0]], "trapezoid")})


def test_metrics_can_be_copied_collected_and_plotted() -> None:
    both = {
        "morf": curve([[1.0, 0.0], [1.0, 0.5]], "trapezoid"),
        "lerf": curve([[1.0, 1.0]] * 2, "trapezoid", name="lerf"),
    }
    metrics = {"morf": CurveScore(area, "morf"), "between": CurveScore(area_between, "morf", "lerf")}
    collection = MetricCollection(dict(metrics))
    collection.update(both)
    copy = pickle.loads(pickle.dumps(collection))
    assert copy.compute()["morf"].mean.item() == pytest.approx(0.625)
    assert copy.compute()["between"].mean.item() == pytest.approx(0.375)
    batch = copy["morf"]({"morf": both["morf"]._replace(rows=both["morf"].rows + 2)})
    assert (batch.n.item(), copy["morf"].compute().n.item()) == (2, 4)
    merged = collection["morf"].clone()
    merged.merge_state(collection["morf"])
    assert merged.compute().n.item() == 4
    figure, axes = plt.subplots()
    copy["morf"].plot(ax=axes)
    assert axes.has_data()
    plt.close(figure)


def of_a_batch(first: int, accuracy: float) -> dict[str, Curves]:
    """Return curves of two images, on which the model is right for half of the way with this probability."""
    return {
        "positive": curve([[accuracy, 0.0]] * 2, "trapezoid", name="positive", first=first),
        "negative": curve([[accuracy, accuracy]] * 2, "trapezoid", name="negative", first=first),
    }


def test_metrics_in_a_collection_keep_their_own_numbers_after_a_batch_that_is_all_zero() -> None:
    batches = [of_a_batch(0, 0.0), of_a_batch(2, 1.0)]

    def metrics() -> dict[str, CurveScore]:
        return {
            "positive": CurveScore(area, "positive"),
            "negative": CurveScore(area, "negative"),
            "twice": CurveScore(lambda curves: 2 * area(curves), "negative"),
            "drawn": CurveScore(area, "positive", seed=1),
        }

    collection, alone = MetricCollection(dict(metrics())), metrics()
    for batch in batches:
        collection.update(batch)
        for metric in alone.values():
            metric.update(batch)
    found = collection.compute()
    assert {name: value.mean.item() for name, value in found.items()} == pytest.approx(
        {"positive": 0.25, "negative": 0.5, "twice": 1.0, "drawn": 0.25}
    )
    for name, metric in alone.items():
        assert found[name] == metric.compute()
    collection.reset()
    collection.update(batches[1])
    assert collection.compute()["negative"].mean.item() == pytest.approx(1.0)


def test_curves_of_other_images_are_refused() -> None:
    with pytest.raises(UserError, match="other images"):
        area_between(curve([[1.0, 0.0]], "trapezoid"), curve([[1.0, 0.0]], "trapezoid", name="lerf", first=1))
