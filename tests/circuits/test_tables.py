"""What a terminal shows of circuits is whole in narrow and in wide ones."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from rich.table import Table

from impact_lightning.circuits.findings import ModelCircuits, comparison, findings
from impact_lightning.circuits.tables import circuit_table, condition_table, model_table
from tests.circuits.test_findings import circuits, unreached

VERDICTS = [
    "fails sufficiency, necessity, nonsense labels, permuted weights, stability",
    "no size reaches the target",
    "the model cannot do it",
]


def shown(table: Table, width: int) -> str:
    console = Console(width=width, file=StringIO(), record=True)
    console.print(table)
    return console.export_text()


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table, each with its lines joined."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if cells[0].startswith(("cat", "dog")) or not found:
                found.append(cells)
            else:
                found[-1] = [f"{a} {b}".strip() for a, b in zip(found[-1], cells, strict=True)]
    return found


@pytest.mark.parametrize("width", [80, 140])
def test_no_word_of_a_verdict_is_cut(width: int) -> None:
    text = shown(circuit_table(circuits(verdicts=VERDICTS)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert [row[-1] for row in rows(text)] == VERDICTS
    assert [row[0] for row in rows(text)] == ["cat or not, seed 0", "cat or not, seed 1", "dog or not, seed 0"]


def test_a_row_says_what_is_known_of_a_circuit() -> None:
    found = circuits()
    first = rows(shown(circuit_table(found), 140))[0]
    counts = found.counts
    assert first[1:] == [
        *(f"{int(counts.nodes[0]):,}", f"{int(counts.edges[0]):,}", f"{float(counts.normalised_edges[0]):,.0f}"),
        *("0.10 / 0.20 / 0.05 / 3.00", "0.05 / 0.05", "0.40 / 0.60", "passes every check"),
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_names_with_brackets_are_shown_as_they_are(width: int) -> None:
    found = circuits("[bold]x", tasks=["cat [red] or not", "cat [red] or not", "dog"])
    of_models = shown(model_table([found]), width)
    assert "[bold]x" in of_models
    assert "[bold]x" in shown(condition_table(found), width).splitlines()[0]
    assert "[red]" in shown(circuit_table(found), width)


def cells(models: list[ModelCircuits], width: int = 140) -> dict[str, list[str]]:
    """Return the rows of the table of models; those that are times the first's by the row before."""
    found: dict[str, list[str]] = {}
    last = ""
    for line in shown(model_table(models), width).splitlines():
        if line.startswith("│"):
            name, *values = (cell.strip() for cell in line.strip("│").split("│"))
            last = last if name.startswith("x") else name
            found[f"{last} {name}" if name.startswith("x") else name] = values
    return found


def test_models_stand_side_by_side() -> None:
    first, second = unreached(circuits(), 1), circuits("sparse", density=0.3, seed=5)
    found = cells([first, second])
    assert found["circuits that reach the loss"] == ["2 of 3", "3 of 3"]
    assert found["controls that reach it at any size"] == ["2 of 4", "2 of 4"]
    assert found["pass every check"] == ["2 of 2", "2 of 3"]
    assert found["stability (by chance)"] == ["0.40 (0.20)", "0.40 (0.20)"]
    known = {one.measure: one for one in findings(second) if one.of == "sparse"}["edges_geometric_mean"]
    assert known.interval is not None
    expected = f"{known.value:,.0f} ({known.interval.low:,.0f}, {known.interval.high:,.0f})"
    assert found["edges"][1] == expected
    ratio = {one.measure: one for one in comparison(second, first)}["edges_ratio"]
    assert found["edges x"][0] == ""
    assert found["edges x"][1].startswith(f"{ratio.value:.2f} (")
    assert ratio.null is not None
    assert found["edges x expected of density"][1] == f"{ratio.null.value:.2f}"


@pytest.mark.parametrize("width", [80, 140])
def test_three_models_fit(width: int) -> None:
    text = shown(model_table([circuits(name) for name in ("dense", "pruned to 0.7", "sparse")]), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name in ("dense", "pruned to 0.7", "sparse"):
        assert name in text


@pytest.mark.parametrize("width", [80, 140])
def test_conditions_are_means_of_circuits_that_reach_their_target(width: int) -> None:
    found = unreached(circuits(), 0)
    found = replace(
        found,
        validated=[
            replace(one, scores={**one.scores, "alone": {**one.scores["alone"], "loss": loss}})
            for one, loss in zip(found.validated, (9.0, 0.2, 0.4), strict=True)
        ],
    )
    text = shown(condition_table(found), width)
    assert max(map(len, text.splitlines())) <= width
    (row,) = [line for line in text.splitlines() if line.startswith("│ alone")]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["alone", "0.300", "0.900", "0.100", "0.900"]


def test_where_no_circuit_reaches_its_target_tables_are_empty_and_not_wrong() -> None:
    found = unreached(circuits(), 0, 1, 2)
    assert not [line for line in shown(condition_table(found), 80).splitlines() if line.startswith("│")]
    of_models = cells([found])
    assert of_models["circuits that reach the loss"] == ["0 of 3"]
    assert not {"nodes", "edges", "edges / d"} & of_models.keys()  # no row of it
