"""What a terminal shows of maps: a row for each method, the best first."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from impact_lightning.attribution.findings import BASELINE, Finding


class Column(NamedTuple):
    """A measure as a table shows it."""

    measure: str
    heading: str
    digits: int = 3


FAITHFULNESS = (
    Column("patch_area_between", "MoRF-LeRF"),
    Column("rise_insertion_auc", "insertion"),
    Column("rise_deletion_auc", "deletion"),
    Column("chefer_positive_auc", "positive", 1),
    Column("chefer_negative_auc", "negative", 1),
    Column("road_combined", "ROAD"),
    Column("groups_saco", "SaCo", 2),
)
PLACES = (
    Column("pointing_game", "pointing"),
    Column("randomised_pointing_game", "randomised"),
    Column("energy_in_mask", "energy"),
    Column("randomised_energy_in_mask", "randomised"),
    Column("rank_accuracy", "ranks"),
    Column("mask_iou", "IoU"),
)
SANITY = (
    Column("likeness_without_head", "head", 2),
    Column("likeness_without_everything", "everything", 2),
    Column("likeness_of_another_class", "other class", 2),
    Column("map_sparseness", "sparseness", 2),
    Column("artifact_mass", "artifacts", 2),
    Column("constant_map", "constant", 2),
)
PARTS = (
    (
        "faithfulness",
        FAITHFULNESS,
        "means over images; * above random maps (below, of deletion and positive) in the 95 % interval",
    ),
    ("maps and objects", PLACES, "beside each the same of the model with every parameter drawn anew"),
    ("sanity", SANITY, "rank correlation with maps of randomised models and of another class; then what maps are like"),
)
LOWER_IS_BETTER = ("rise_deletion_auc", "chefer_positive_auc")


def method_table(model: str, found: Sequence[Finding]) -> list[Table]:
    """Return the tables of a model, of the measures that there are."""
    known = {(one.method, one.measure): one for one in found}
    methods = list(dict.fromkeys(one.method for one in found))
    tables = []
    for title, columns, caption in PARTS:
        shown = [column for column in columns if any((method, column.measure) in known for method in methods)]
        if not shown:
            continue
        table = Table(title=f"{escape(model)}: {title}", title_justify="left", caption=caption, caption_justify="left")
        table.add_column("method")
        for column in shown:
            table.add_column(column.heading, justify="right")
        for method in methods:
            table.add_row(escape(method), *(_cell(known, method, column) for column in shown))
        tables.append(table)
    return tables


def _cell(known: dict[tuple[str, str], Finding], method: str, column: Column) -> str:
    one = known.get((method, column.measure))
    if one is None:
        return ""
    ahead = known.get((method, f"{column.measure}_above_random"))
    is_better = False
    if method != BASELINE and ahead is not None and ahead.interval is not None:
        lower = column.measure in LOWER_IS_BETTER
        is_better = ahead.interval.high < 0 if lower else ahead.interval.low > 0
    return f"{one.value:.{column.digits}f}" + ("*" if is_better else " ")
