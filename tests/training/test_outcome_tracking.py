"""The run of W&B that holds the outcome: its figures, its tables and the report, without an account."""

import json
from pathlib import Path

import pytest

from impact_lightning.report.figures import figures_of
from impact_lightning.report.page import write_report
from impact_lightning.training.outcome_tracking import track_outcome
from tests.report.outcomes import write_run


def test_figures_tables_and_report_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    found = write_run(tmp_path)
    page = write_report(tmp_path).read_text()
    track_outcome(found, tmp_path, "project")
    assert wandb.run is None  # finished
    (media,) = (tmp_path / "wandb").glob("offline-run-*/files/media")
    logged = {path: path.read_text() for path in media.rglob("*.html")}
    figures = figures_of(page)
    assert {"effects-neurons", "accuracy-points"} <= set(figures)
    assert page in logged.values()
    for name, figure in figures.items():
        assert figure in logged.values(), name
    tables = {path.name.split("_")[0]: json.loads(path.read_text()) for path in media.rglob("*.table.json")}
    assert set(tables) == {"answers", "effects", "models", "planted"}
    assert len(tables["answers"]["data"]) == len(found.verdicts)
    assert len(tables["models"]["data"]) == len(found.models)


def test_a_second_start_continues_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    found = write_run(tmp_path)
    write_report(tmp_path)
    for _ in range(2):
        track_outcome(found, tmp_path, "project")
    names = {path.stem for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")}
    assert names == {f"run-{(tmp_path / 'wandb_id').read_text()}"}
