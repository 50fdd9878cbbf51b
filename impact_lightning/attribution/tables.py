"""What a terminal shows of maps: a row for each method, in 80 columns."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from impact_lightning.attribution.findings import ABOVE_RANDOM, Finding


class Column(NamedTuple):
    """A measure as a table shows it."""

    measure: str
    heading: str
    digits: int = 3
    better: int = 1  # 1 where more is better, -1 where less is, 0 where neither


FAITHFULNESS = (
    Column("patch_area_between", "MoRF-\nLeRF"),
    Column("rise_insertion_auc", "inser-\ntion"),
    Column("rise_deletion_auc", "dele-\ntion", better=-1),
    Column("chefer_positive_auc", "posi-\ntive", 1, better=-1),
    Column("chefer_negative_auc", "nega-\ntive", 1),
    Column("road_combined", "ROAD"),
    Column("groups_saco", "SaCo", 2),
)
PLACES = (
    Column("pointing_game", "pointing"),
    Column("randomised_pointing_game", "random-\nised"),
    Column("energy_in_mask", "energy"),
    Column("randomised_energy_in_mask", "random-\nised"),
    Column("rank_accuracy", "ranks"),
    Column("mask_iou", "IoU"),
)
SANITY = (
    Column("likeness_without_head", "no\nhead", 2, better=0),
    Column("likeness_without_everything", "nothing\nlearnt", 2, better=0),
    Column("likeness_of_another_class", "other\nclass", 2, better=0),
    Column("map_sparseness", "sparse-\nness", 2, better=0),
    Column("artifact_mass", "arti-\nfacts", 2, better=0),
    Column("tied_patches", "tied", 2, better=0),
    Column("constant_map", "con-\nstant", 2, better=0),
)
PARTS = (
    (
        "faithfulness",
        FAITHFULNESS,
        "means over images; * above random maps (below, of deletion and positive) in the 95 % interval",
    ),
    (
        "maps and objects",
        PLACES,
        "* above random maps in the 95 % interval; randomised: the same with every parameter of the model drawn anew",
    ),
    (
        "sanity",
        SANITY,
        "rank correlation with maps of randomised models and of another class; then what maps are like",
    ),
)


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
        table.min_width = 60  # of the caption too
        table.add_column("method")
        for column in shown:
            table.add_column(column.heading, justify="right")
        for method in methods:
            table.add_row(escape(method.replace("_", " ")), *(_cell(known, method, column) for column in shown))
        tables.append(table)
    return tables


def _cell(known: dict[tuple[str, str], Finding], method: str, column: Column) -> str:
    one = known.get((method, column.measure))
    if one is None:
        return ""
    ahead = known.get((method, column.measure + ABOVE_RANDOM))
    is_better = False
    if ahead is not None and ahead.interval is not None:
        is_better = {1: ahead.interval.low > 0, 0: False, -1: ahead.interval.high < 0}[column.better]
    return f"{one.value:.{column.digits}f}" + ("*" if is_better else " ")
