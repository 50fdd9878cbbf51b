"""The end of a test: its records go to `results.json`, to the logger, and to a table in the terminal."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from impact_lightning.results import Record, read_results, write_results
from impact_lightning.training.rehearsal import is_rehearsal
from impact_lightning.training.tracking import wandb_runs


@runtime_checkable
class Measured(Protocol):
    """A module that has measured something."""

    records: list[Record]


@runtime_checkable
class Tabled(Protocol):
    """A module with so many records that it shows tables of its own."""

    def tables(self) -> list[Table]:
        """Return what a terminal shows."""


class ResultsWriter(Callback):
    """Write what a test measured."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a results file that cannot be added to before the work is done, not after it."""
        if (path := Path(trainer.default_root_dir) / "results.json").exists():
            read_results(path)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, track and show the records of the module."""
        if not trainer.is_global_zero or not isinstance(pl_module, Measured) or is_rehearsal(trainer):
            return
        tables = pl_module.tables() if isinstance(pl_module, Tabled) else records_tables(pl_module.records)
        for table in tables:  # first of all: a disk may be full
            Console().print(table)
        write_results(Path(trainer.default_root_dir) / "results.json", pl_module.records)
        for run in wandb_runs(trainer):
            _track(run, pl_module.records)


def records_tables(records: list[Record]) -> list[Table]:
    """Return a table for each thing that was measured: values, intervals, nulls, and the samples behind them."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.of, []).append(record)
    return [_table(of or "results", group) for of, group in groups.items()]


def _table(title: str, records: list[Record]) -> Table:
    is_shared = len(records) > 1 and len({record.notes for record in records}) == 1  # said once, below the table
    has_notes = not is_shared and any(record.notes for record in records)
    table = Table(title=escape(title), title_justify="left", caption_justify="left")
    table.caption = escape("; ".join(records[0].notes)) if is_shared else None
    table.add_column("measure", no_wrap=True)
    for name in ("value", "95 % interval", "null", "samples"):
        table.add_column(name, justify="right")
    if has_notes:
        table.add_column("notes")
    for record in records:
        interval = f"{record.interval.low:.4f} – {record.interval.high:.4f}" if record.interval else "–"
        null = f"{record.null.value:.4f}" if record.null else "–"
        notes = [escape("; ".join(record.notes))] if has_notes else []
        table.add_row(record.measure, f"{record.value:.4f}", interval, null, f"{record.n:,}", *notes)
    return table


def _track(run: Any, records: list[Record]) -> None:
    """Log the records as one table of a W&B run."""
    import wandb

    columns: list[str | int] = [
        "measure",
        "of",
        "value",
        "low",
        "high",
        "null",
        "n",
        "seed",
        "weights",
        "data",
        "protocol",
    ]
    rows = [
        [
            *(record.measure, record.of, record.value),
            *((record.interval.low, record.interval.high) if record.interval else (None, None)),
            record.null.value if record.null else None,
            *(record.n, record.seed, record.weights, record.data, str(record.protocol)),
        ]
        for record in records
    ]
    run.log({"results": wandb.Table(columns=columns, data=rows)})
