"""The table of results shows value, interval, null, samples and notes."""

from io import StringIO

from rich.console import Console

from impact_lightning.results import Interval, Null, Record
from impact_lightning.training.results_writer import records_tables


def test_a_table_shows_what_belongs_to_a_number() -> None:
    full = Record(
        *("top1", 1, 0.75, 4000, 0, {}, "w", "d"),
        null=Null(0.25, "labels permuted"),
        interval=Interval(0.7, 0.8, "Wilson"),
        notes=("2 damaged samples left out",),
    )
    bare = Record("loss", 1, 1.5, 4000, 0, {}, "w", "d", of="blocks.3")
    shown = StringIO()
    Console(width=120, file=shown).print(*records_tables([full, bare]))
    first, second = (line for line in shown.getvalue().splitlines() if "4,000" in line)
    assert all(part in first for part in ("top1", "0.7500", "0.7000 – 0.8000", "0.2500", "2 damaged samples"))
    assert "loss" in second
    assert "blocks.3" in shown.getvalue()


def test_notes_that_all_numbers_share_are_said_once() -> None:
    records = [
        Record(name, 1, 1.5, 4000, 0, {}, "w", "d", of="blocks.3", notes=("nothing was spliced",))
        for name in ("fvu", "l0")
    ]
    shown = StringIO()
    Console(width=120, file=shown).print(*records_tables(records))
    assert shown.getvalue().count("nothing was spliced") == 1
