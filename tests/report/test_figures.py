"""Figures show the numbers that were measured, and their SVG can stand beside others in a page."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from impact_lightning.report import (
    accuracy,
    attribution_figures,
    circuit_figures,
    neuron_figures,
    sae_figures,
)
from impact_lightning.report.figures import colours, style, svg
from impact_lightning.report.sources import records
from impact_lightning.suite.outcome import Model, Outcome
from tests.report.outcomes import CLASSES, EVIL, NAMES, TASK, outcome, write_run

Drawn = Callable[[ModuleType], dict[str, Any]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Drawn:
    """Return what makes a section and gives back its figures by name, before they become SVG."""

    def make(module: ModuleType) -> dict[str, Any]:
        figures: dict[str, Any] = {}

        def keep(figure: Any, name: str, said: str) -> Markup:
            figures[name] = figure
            return Markup()

        monkeypatch.setattr(module, "svg", keep)
        figures["section"] = module.section(write_run(tmp_path), tmp_path)
        return figures

    return make


def points(axes: Any, marker: str = "o") -> list[tuple[float, float]]:
    """Return the places of the points of an axis."""
    lines = [line for line in axes.get_lines() if line.get_marker() == marker]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines]


def test_accuracy_is_drawn_against_sparsity(drawn: Drawn) -> None:
    figures = drawn(accuracy)
    axes = figures["accuracy-points"].axes[0]
    assert points(axes, "D") == [(0.0, 91.0)]
    assert points(axes) == [pytest.approx((50.0, 88.0)), pytest.approx((90.0, 85.0))]
    assert figures["section"].gaps == (f"accuracy or sparsity is not known of {EVIL}",)


def test_violins_show_the_values_of_classes_beside_their_null(drawn: Drawn) -> None:
    axes = drawn(neuron_figures)["violins-neurons-neurons"].axes
    selectivity = [one for one in axes if one.get_ylabel().startswith("selectivity")]
    dots = [one for one in selectivity[0].collections if one.get_label() == "points"]
    values = [0.5 + 0.1 * label for label in range(len(CLASSES))]
    for at, one in enumerate(dots):
        assert one.get_offsets()[:, 1].tolist() == pytest.approx([value + 0.01 * at for value in values])
    nulls = [line for line in selectivity[0].get_lines() if line.get_label() == "null"]
    assert [line.get_ydata()[0] for line in nulls] == [0.5] * len(NAMES)


def test_a_model_without_a_file_keeps_its_place_and_colour_in_the_violins(tmp_path: Path) -> None:
    made = write_run(tmp_path)
    (tmp_path / "units/neurons/neurons/models/dense/classes.csv").unlink()
    section = neuron_figures.section(made, tmp_path)
    assert "dense" in section.html
    assert colours(made)["wanda50"] in section.html
    assert len(section.gaps) == 1


def test_sae_measures_are_drawn_with_interval_and_null(drawn: Drawn) -> None:
    axes = drawn(sae_figures)["sae-measures"].axes
    assert [one.get_title(loc="left") for one in axes[:3]] == [
        "explained variance",
        "share of dead latents",
        "label purity",
    ]
    assert [y for _, y in points(axes[0])] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    flat = [line.get_ydata() for line in axes[0].get_lines() if line.get_marker() == "None"]
    assert [0.4, 0.4] in [list(y) for y in flat]
    assert any(np.allclose(y, [0.85, 0.95]) for y in flat)
    assert [tick.get_text() for tick in axes[0].get_xticklabels()] == ["0%", "50%", "90%", "?"]


def test_circuits_are_drawn_at_their_size_and_what_is_none_is_hollow(drawn: Drawn) -> None:
    figures = drawn(circuit_figures)
    nodes = figures["circuit-points"].axes[0]
    lines = [line for line in nodes.get_lines() if line.get_marker() == "o"]
    assert [x for x, _ in points(nodes)] == pytest.approx([100, 101, 50, 51, 100 / 3, 100 / 3 + 1, 25, 26])
    assert [line.get_markerfacecolor() == "white" for line in lines] == [False] * 6 + [True] * 2
    assert [text.get_text() for text in nodes.get_yticklabels()] == ["</script><img …ror=alert(2)>"]


def test_circuit_tables_hold_means_and_ratios_with_their_nulls() -> None:
    html = str(circuit_figures.section(outcome(), Path()).html)
    assert "wanda50 / dense" in html
    assert "×\u00a00.5" in html
    assert TASK not in html


def test_curves_are_means_over_images_beside_random_maps(drawn: Drawn) -> None:
    figures = drawn(attribution_figures)
    axes = figures["curves-attribution-transformer_attribution"].axes[0]
    assert axes.get_title(loc="left") == "rise\ninsertion: higher is better"
    solid = [line for line in axes.get_lines() if line.get_linestyle() == "-"]
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_ydata()[-1] for line in solid] == pytest.approx([1.0, 0.9, 0.8, 0.7])
    assert [line.get_ydata()[-1] for line in dashed] == pytest.approx([0.6, 0.54, 0.48, 0.42])
    assert solid[0].get_xdata().tolist() == [0, 25, 50, 75, 100]
    assert "more-curves-attribution-rise" in figures


def test_the_grid_has_every_image_and_model(tmp_path: Path) -> None:
    html = str(attribution_figures.section(write_run(tmp_path), tmp_path).html)
    grid = html[html.index('<table class="maps">') : html.index("</table>")]
    assert grid.count("<img src=") == 3 * (1 + len(NAMES))
    assert "&lt;i&gt;a.png" in grid


def test_seeds_of_a_model_share_its_colour() -> None:
    made = outcome()
    again = [replace(model, name=f"{model.name}.1", seed=1) for model in made.models]
    found = colours(replace(made, models=[*made.models, *again]))
    assert found["dense"] == found["dense.1"] != found["wanda50"]
    assert {name: colour for name, colour in found.items() if name in NAMES} == colours(made)


# ------------------------------------------------------------------------------------------------------------------ svg


def plot(text: str = "a") -> Any:
    with style():
        figure = Figure(figsize=(2, 1))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1])
        axes.set_title(text)
    return figure


def test_svg_is_the_same_for_the_same_figure() -> None:
    assert svg(plot(), "one", "said") == svg(plot(), "one", "said")


def test_figures_of_a_page_share_no_name() -> None:
    ids = [set(re.findall(r'id="([^"]*)"', svg(plot(), name, "said"))) for name in ("one", "two")]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', svg(plot(), "one", "said")))
    assert {a or b for a, b in used} <= ids[0]


def test_svg_escapes_names_and_reads_no_mathematics() -> None:
    text = svg(plot("<b>$x_{$ & \\frac"), "one", 'a "name" <b>')
    assert "&lt;b&gt;$x_{$ &amp; \\frac" in text
    assert 'aria-label="a &#34;name&#34; &lt;b&gt;"' in text
    assert "<b>" not in text


def test_svg_holds_no_address_no_date_and_no_style_of_its_own() -> None:
    text = svg(plot(), "one", "said")
    assert "http" not in text
    assert "<style" not in text
    assert "<metadata" not in text
    assert 'viewBox="0 0 144 72"' in text


# -------------------------------------------------------------------------------------------------------------- records


def test_records_belong_to_the_model_that_they_name_or_to_that_of_their_unit() -> None:
    found = {(model.name, of) for model, of, _ in records(outcome(), "sae")}
    assert found == {(name, "blocks.1.resid_post/0-BatchTopK-x8-s0") for name in NAMES}
    circuits = {model.name for model, _, _ in records(outcome(), "circuits")}
    assert circuits == set(NAMES)
    assert not any(" - " in of or " / " in of for _, of, _ in records(outcome(), "neurons"))


def test_a_name_that_begins_with_another_one_is_told_apart() -> None:
    made = outcome()
    longer: list[Model] = [*made.models, replace(made.models[0], name="dense/big")]
    entry = next(one for one in made.entries if one.unit == "neurons")
    record = replace(entry.record, of="dense/big/neurons")
    only = Outcome("0", "t", {}, longer, made.units, [], [], [replace(entry, record=record)])
    assert [(model.name, of) for model, of, _ in records(only, "neurons")] == [("dense/big", "neurons")]
