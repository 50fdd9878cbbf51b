"""What violins show: every defined value, beside its null, in the colour of its model."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.neurons.layers import Kind, Layer
from impact_lightning.neurons.look import blocks_of, colours
from impact_lightning.neurons.measures import EXACT, PERMUTED, Measure, Measures
from impact_lightning.neurons.violins import (
    FEW,
    SHOWN,
    cells,
    draw_violins,
    is_spread,
    limits,
    violins,
)
from impact_lightning.types import UserError

UNKNOWN: Any = None  # what no picture looks at
N_UNITS = 4


def make_measures(
    n_blocks: int = 2, n_classes: int = 6, *, seed: int = 0, shift: float = 0.0, kinds: tuple[Kind, ...] = ("neuron",)
) -> Measures:
    """Return the four measures, one of units and one that no table knows, of layers of four units."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    places = [(block, kind) for block in range(n_blocks) for kind in kinds]
    layers = [Layer(block, kind, N_UNITS, 1, N_UNITS * i, N_UNITS * i) for i, (block, kind) in enumerate(places)]
    table = n_classes, len(layers)
    n = N_UNITS * len(layers)
    by_name = {
        "of_its_own": Measure(drawn(*table)),
        "ablation_impact": Measure(drawn(*table) + shift, 0.1 * drawn(*table), "another class's units are ablated"),
        "selectivity": Measure(0.6 + 0.1 * drawn(*table), torch.tensor(0.5, dtype=torch.float64), EXACT),
        "class_variance": Measure(drawn(*table).exp(), drawn(*table).exp(), PERMUTED),
        "label_entropy": Measure(2 - 0.1 * drawn(*table).abs(), torch.full(table, 2.0, dtype=torch.float64), PERMUTED),
        "precision_at_k": Measure(drawn(n), drawn(n), PERMUTED),
    }
    preferred = torch.arange(n) % n_classes
    units = torch.arange(n)
    rest = {"auroc": UNKNOWN, "top": UNKNOWN, "own": UNKNOWN, "scores": UNKNOWN}
    return Measures(layers, n_classes, by_name, units, preferred, images=10, **rest)


def axes_of(measures: Mapping[str, Measures], kind: Kind = "neuron") -> list[Any]:
    return cast(list[Any], violins(measures, kind).axes)


def labelled(axes: Any, label: str) -> list[Any]:
    return [line for line in axes.lines if line.get_label() == label]


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def png(measures: Mapping[str, Measures], kind: Kind = "neuron") -> bytes:
    file = BytesIO()
    draw_violins(file, measures, kind)
    return file.getvalue()


def test_rows_are_measures_and_columns_blocks() -> None:
    axes = axes_of({"dense": make_measures(3), "pruned": make_measures(2, seed=1)})
    assert len(axes) == len(SHOWN) * 3
    assert [one.get_title() for one in axes[:3]] == ["block 0", "block 1", "block 2"]
    assert axes[0].get_ylabel() == "ablation impact\nhigher: more selective"
    assert axes[6].get_ylabel() == "class variance (σ/μ)\nlower: more selective"


def test_every_value_is_a_point_and_medians_are_marked() -> None:
    measures = {"dense": make_measures(), "pruned": make_measures(seed=1)}
    axes = axes_of(measures)[1]  # ablation impact of block 1
    points = [shape for shape in axes.collections if shape.get_label() == "points"]
    assert len(points) == 2
    medians = [line.get_ydata()[0] for line in labelled(axes, "median")]  # null, values, null, values
    for slot, (shape, one) in enumerate(zip(points, measures.values(), strict=True)):
        measure = one.by_name["ablation_impact"]
        assert measure.null is not None
        x, y = np.asarray(shape.get_offsets()).T
        assert y.tolist() == measure.values[:, 1].tolist()
        assert (np.abs(x - slot) < 0.5).all()
        expected = np.median(measure.null[:, 1].numpy()), np.median(measure.values[:, 1].numpy())
        assert medians[2 * slot : 2 * slot + 2] == pytest.approx(expected)


def test_values_stand_to_the_right_of_their_null() -> None:
    axes = axes_of({"dense": make_measures(1)})[0]
    null, body = (shape.get_paths()[0].vertices for shape in axes.collections[:2])
    assert null[:, 0].max() <= 0 <= body[:, 0].min()
    assert null[:, 0].min() < 0 < body[:, 0].max()


def test_a_null_that_is_one_number_is_a_dashed_line() -> None:
    dashes = labelled(axes_of({"dense": make_measures(1)})[1], "null")
    assert [list(line.get_ydata()) for line in dashes] == [[0.5, 0.5]]


def test_many_classes_have_no_points() -> None:
    for n, expected in ((FEW, 1), (FEW + 1, 0)):
        axes = axes_of({"dense": make_measures(1, n)})[0]
        assert sum(shape.get_label() == "points" for shape in axes.collections) == expected


def test_models_have_colours_of_their_own_and_a_legend() -> None:
    names = [f"sparse{i}" for i in range(6)]
    assert len(set(colours(names).values())) == 6
    figure = violins({name: make_measures(1, seed=i) for i, name in enumerate(names)}, "neuron")
    assert [text.get_text() for text in figure.legends[0].get_texts()][:6] == names
    from matplotlib.colors import to_hex

    bodies = figure.axes[1].collections[::2]  # selectivity: a violin, its points, ...
    assert [to_hex(cast(Any, body.get_facecolor())[0]) for body in bodies] == list(colours(names).values())


def test_what_is_undefined_is_left_out() -> None:
    measures = make_measures()
    values = measures.by_name["ablation_impact"].values
    values[2, 0] = torch.nan
    values[:, 1] = torch.nan
    left, right = axes_of({"dense": measures})[:2]
    (points,) = (shape for shape in left.collections if shape.get_label() == "points")
    assert len(points.get_offsets()) == 5
    assert texts(left) == []
    assert texts(right) == ["undefined"]
    assert not right.collections


def test_nothing_but_nan_is_drawn_too() -> None:
    measures = make_measures()
    for name in SHOWN:
        measures.by_name[name].values.fill_(torch.nan)
    assert png({"dense": measures}).startswith(b"\x89PNG\r\n\x1a\n")


def test_equal_values_are_a_dash() -> None:
    measures = make_measures(1)
    measures.by_name["ablation_impact"].values.fill_(0.25)
    dashes = labelled(axes_of({"dense": measures})[0], "constant")
    assert [list(line.get_ydata()) for line in dashes] == [[0.25, 0.25]]
    assert png({"dense": measures}).startswith(b"\x89PNG\r\n\x1a\n")


def test_a_measure_that_is_missing_leaves_its_row_empty() -> None:
    measures = make_measures(1)
    del measures.by_name["ablation_impact"]
    assert not axes_of({"dense": measures})[0].lines


def test_heads_and_neurons_are_kept_apart() -> None:
    measures = make_measures(2, kinds=("head", "neuron"))
    values = measures.by_name["ablation_impact"].values
    for kind, places in (("head", [0, 2]), ("neuron", [1, 3])):
        found = cells(measures, "ablation_impact", cast(Kind, kind))
        assert {block: cell.values.tolist() for block, cell in found.items()} == {
            block: values[:, place].tolist() for block, place in enumerate(places)
        }


def test_a_kind_that_was_not_measured_is_refused() -> None:
    with pytest.raises(UserError, match="no layer of heads was measured"):
        blocks_of([make_measures()], "head")


def test_far_outliers_are_counted_instead_of_drawn() -> None:
    values = np.linspace(0, 1, 1001)
    values[7] = 500.0
    low, high = limits([values])
    assert -0.1 < low < 0
    assert 1 < high < 1.1
    measures = make_measures(1, 1001)
    measures.by_name["ablation_impact"].values[:, 0] = torch.from_numpy(values)
    figure = violins({"dense": measures}, "neuron")
    assert texts(figure.axes[0]) == ["▲\n1"]
    assert "beyond the axis" in cast(Any, figure).get_supxlabel()


def test_limits_hold_all_groups_however_rare() -> None:
    groups = [np.linspace(0, 1, 1000)] * 70 + [np.linspace(9, 10, 1000)]
    low, high = limits(groups)
    assert low < 0
    assert high > 10
    assert limits([]) == limits([np.empty(0)])


def test_spread_is_more_than_rounding() -> None:
    assert not is_spread(np.array([3.0]))
    assert not is_spread(np.array([3.0, 3.0 + 1e-15]))
    assert not is_spread(np.zeros(3))
    assert is_spread(np.array([3.0, 3.1]))


def test_six_models_and_a_thousand_classes_are_drawn() -> None:
    measures = {f"sparse{i}": make_measures(1, 1000, seed=i) for i in range(6)}
    assert png(measures).startswith(b"\x89PNG\r\n\x1a\n")
