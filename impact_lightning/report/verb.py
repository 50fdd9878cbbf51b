"""The verb `report`: the results of a run become one page, nothing is measured again."""

from pathlib import Path

from impact_lightning.report.page import write_report


def report(directory: Path) -> None:
    """Write `report.html` from `results.json` and the files beside it.

    Args:
        directory: Folder that `impact` has written.
    """
    write_report(directory)
