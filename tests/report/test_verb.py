"""The verb writes the report of a folder."""

from pathlib import Path

import pytest

from impact_lightning.report import page
from impact_lightning.report.verb import report
from impact_lightning.types import UserError
from tests.report.outcomes import write_run


def test_report_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "builders", lambda: [])  # other tests look at its sections
    write_run(tmp_path)
    report(tmp_path)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_refuses_a_folder_that_impact_has_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.json: there is no such file; `impact` writes it"):
        report(tmp_path)
