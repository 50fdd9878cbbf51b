"""Tables show every measure that there is in 80 columns, and a star where random maps are left behind."""

from rich.console import Console

from impact_lightning.attribution.findings import Finding
from impact_lightning.attribution.lit_attribution import METHODS
from impact_lightning.attribution.tables import FAITHFULNESS, PARTS, PLACES, SANITY, method_table
from impact_lightning.results import Interval


def finding(method: str, measure: str, value: float, *, low: float | None = None, high: float = 1.0) -> Finding:
    interval = None if low is None else Interval(low, high, "by hand")
    return Finding(measure, value, method, 9, None, interval)


def shown(found: list[Finding]) -> str:
    """Return what a terminal of 80 columns shows."""
    console = Console(width=80)
    with console.capture() as captured:
        for table in method_table("dense", found):
            console.print(table)
    return captured.get()


def test_all_methods_and_measures_fit_a_terminal() -> None:
    columns = [*FAITHFULNESS, *PLACES, *SANITY]
    found = [finding(method, column.measure, -0.12345) for method in METHODS for column in columns]
    text = shown(found)
    assert "…" not in text
    assert text.count("dense: ") == len(PARTS)
    for column in columns:
        for part in column.heading.split("\n"):
            assert part in text
    assert text.count("-0.123") == len(METHODS) * (4 + len(PLACES))
    assert text.count("-0.12 ") == len(METHODS) * (1 + len(SANITY))


def test_a_caption_is_read_beside_a_single_column() -> None:
    assert "means over images; * above random maps (below, of deletion" in shown([finding("rise", "groups_saco", 0.5)])


def test_measures_that_are_not_there_have_no_column() -> None:
    (table,) = method_table("dense", [finding("rise", "road_combined", 0.5)])
    assert [column.header for column in table.columns] == ["method", "ROAD"]
    assert method_table("dense", [finding("rise", "another", 0.5)]) == []


def test_a_star_says_that_the_interval_leaves_random_maps_behind() -> None:
    found = [
        finding("rise", "road_combined", 0.5),
        finding("rise", "road_combined_above_random", 0.3, low=0.1),
        finding("grad", "road_combined", 0.6),
        finding("grad", "road_combined_above_random", 0.4, low=-0.1),
        finding("rollout", "road_combined", 0.7),
        finding("rollout", "road_combined_above_random", 0.4),
        finding("random", "road_combined", 0.2),
    ]
    text = shown(found)
    assert "0.500*" in text
    assert all(f"{value} " in text for value in ("0.600", "0.700", "0.200"))
    assert text.count("*") == 2  # with the one of the caption


def test_less_can_be_better() -> None:
    for low, high, star in ((-0.4, -0.1, "*"), (0.1, 0.4, " ")):
        found = [
            finding("rise", "rise_deletion_auc", 0.5),
            finding("rise", "rise_deletion_auc_above_random", 0.0, low=low, high=high),
        ]
        assert f"0.500{star}" in shown(found)


def test_what_is_neither_better_nor_worse_has_no_star() -> None:
    found = [
        finding("rise", "map_sparseness", 0.5),
        finding("rise", "map_sparseness_above_random", 0.3, low=0.1),
    ]
    assert "*" not in shown(found)


def test_names_are_no_markup() -> None:
    assert "[red]x" in shown([finding("[red]x", "road_combined", 0.5)])
