"""What the comparison shows: the findings, by block, and the differences to the first model."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any, cast

import numpy as np
import pytest
import torch

from impact_lightning.neurons.comparison_picture import comparison, draw_comparison
from impact_lightning.neurons.findings import Finding, differences, findings
from impact_lightning.neurons.layers import Kind
from impact_lightning.neurons.look import colours
from impact_lightning.neurons.measures import Measures
from tests.neurons.test_violins import labelled, make_measures, texts

SEED = 3


def found_of(measures: Mapping[str, Measures]) -> tuple[dict[str, list[Finding]], dict[str, list[Finding]]]:
    """Return what was found of models, and their differences to the first."""
    base, *others = measures
    levels = {name: list(findings(one, SEED)) for name, one in measures.items()}
    return levels, {name: list(differences(measures[name], measures[base], SEED)) for name in others}


def everything(measures: Mapping[str, Measures]) -> tuple[Any, Any, Any]:
    return (measures, *found_of(measures))


def panels(measures: Mapping[str, Measures], kind: Kind = "neuron") -> dict[str, list[Any]]:
    """Return the axes by title: of levels, and beneath them of differences."""
    figure = comparison(measures, *found_of(measures), kind)
    grid = cast(list[Any], figure.axes)
    columns = 4
    found = {}
    for place, axes in enumerate(grid):
        if title := axes.get_title(loc="left"):
            found[title] = [axes, grid[place + columns]] if len(measures) > 1 else [axes]
    return found


def bars(axes: Any) -> list[tuple[float, float]]:
    ends = [path.vertices[:, 1] for shape in axes.collections for path in shape.get_paths()]
    return [(float(y.min()), float(y.max())) for y in ends]


def test_known_measures_come_first_and_have_readable_names() -> None:
    found = panels({"dense": make_measures()})
    assert list(found) == [
        "ablation impact",
        "selectivity (AUROC)",
        "class variance (σ/μ)",
        "label entropy (nats)",
        "precision at k",
        "of its own",
    ]
    assert texts(found["class variance (σ/μ)"][0]) == ["lower: more selective"]


def test_lines_are_findings_of_the_layers_of_a_kind() -> None:
    measures = make_measures(3, kinds=("head", "neuron"))
    kinds: tuple[Kind, ...] = ("neuron", "head")
    for kind in kinds:
        (axes,) = panels({"dense": measures}, kind)["ablation impact"]
        expected = {one.of: one for one in findings(measures, SEED) if one.measure == "ablation_impact"}
        chosen = [expected[f"blocks.{block}.{kind}s"] for block in range(3)]
        (line,), (null,) = labelled(axes, "value"), labelled(axes, "null")
        assert line.get_xdata().tolist() == [0, 1, 2]
        assert line.get_ydata().tolist() == [one.value for one in chosen]
        assert null.get_ydata().tolist() == [one.null.value for one in chosen if one.null]
        band = axes.collections[0].get_paths()[0].vertices
        for block, one in enumerate(chosen):
            at_block = band[band[:, 0] == block, 1]
            assert (at_block.min(), at_block.max()) == pytest.approx((one.interval.low, one.interval.high))


def test_differences_are_to_the_first_model() -> None:
    measures = {"dense": make_measures(), "a": make_measures(seed=1, shift=2.0), "b": make_measures(seed=2, shift=-1.0)}
    level, gap = panels(measures)["ablation impact"]
    assert len(labelled(level, "value")) == 3
    shown = labelled(gap, "difference")
    assert [line.get_color() for line in shown] == list(colours(list(measures)).values())[1:]
    drawn = bars(gap)
    for place, (line, name) in enumerate(zip(shown, ["a", "b"], strict=True)):
        found = differences(measures[name], measures["dense"], SEED)
        of_layers = [one for one in found if one.measure == "ablation_impact" and one.of.startswith("blocks.")]
        assert line.get_ydata().tolist() == [one.value for one in of_layers]
        assert np.abs(line.get_xdata() - np.arange(2)).max() < 0.5
        ends = [(one.interval.low, one.interval.high) for one in of_layers]
        assert drawn[2 * place : 2 * place + 2] == [pytest.approx(pair) for pair in ends]


def test_one_model_has_nothing_to_differ_from() -> None:
    axes = cast(list[Any], comparison(*everything({"dense": make_measures()}), "neuron").axes)
    assert len(axes) == 8  # 6 measures and 2 free places
    assert not any(labelled(one, "difference") for one in axes)


def test_a_measure_without_null_has_no_dashed_line() -> None:
    (axes,) = panels({"dense": make_measures()})["of its own"]
    (null,) = labelled(axes, "null")
    assert np.isnan(null.get_ydata()).all()


def test_what_is_undefined_is_said() -> None:
    base, other = make_measures(), make_measures(seed=1)
    base.by_name["ablation_impact"].values[:, 0] = torch.nan
    other.by_name["ablation_impact"].values[:, 1] = torch.nan
    level, gap = panels({"dense": base, "pruned": other})["ablation impact"]
    assert "undefined" not in texts(level)
    assert texts(gap) == ["undefined"]


def test_rounding_is_no_difference_to_the_eye() -> None:
    base, other = make_measures(), make_measures(seed=1)
    for measures, value in ((base, 1.0), (other, 1.0 + 2e-16)):
        measures.by_name["of_its_own"].values.fill_(value)
    for axes in panels({"dense": base, "pruned": other})["of its own"]:
        low, high = axes.get_ylim()
        assert high - low >= 0.1


def test_a_single_block_shows_its_intervals_side_by_side() -> None:
    level, _ = panels({"dense": make_measures(1), "pruned": make_measures(1, seed=1)})["ablation impact"]
    x = [float(line.get_xdata()[0]) for line in labelled(level, "value")]
    assert x[0] < 0 < x[1]
    lines = [shape.get_segments()[0] for shape in level.collections if hasattr(shape, "get_segments")]
    assert [float(line[0, 0]) for line in lines] == x
    assert all(line[0, 1] < line[1, 1] for line in lines)


def test_the_small_print_says_what_bands_and_nulls_are() -> None:
    figure = cast(Any, comparison(*everything({"dense": make_measures(), "pruned": make_measures(seed=1)}), "neuron"))
    said = " ".join(figure.get_supxlabel().split())
    assert "95 % bootstrap intervals over classes" in said
    assert "of ablation impact: another class's units are ablated" in said
    assert "model − dense" in said
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:2] == ["dense", "pruned"]


def test_models_of_different_depth_are_drawn() -> None:
    file = BytesIO()
    draw_comparison(file, *everything({"dense": make_measures(1), "deep": make_measures(2, seed=1)}), "neuron")
    assert file.getvalue().startswith(b"\x89PNG\r\n\x1a\n")
