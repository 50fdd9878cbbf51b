"""The outcome of `impact` in W&B: a run with the answers as tables, figures and report, beside those of its units."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from impact_lightning.report.figures import figures_of
from impact_lightning.suite.outcome import Outcome
from impact_lightning.training.tracking import wandb_id


def track_outcome(outcome: Outcome, out: Path, project: str) -> None:
    """Log tables, figures and the report; a run that is started again continues the same W&B run.

    Args:
        outcome: What was found.
        out: Folder of the run, in which the report is.
        project: W&B project.
    """
    import wandb

    run = wandb.init(
        project=project,
        group=outcome.title,
        name="report",
        job_type="report",
        id=wandb_id(out),
        resume="allow",
        dir=str(out),
        config=outcome.configuration,
    )
    effects = [{"level": one.level, "model": one.model, **asdict(e)} for one in outcome.verdicts for e in one.effects]
    answers = [{key: value for key, value in asdict(one).items() if key != "effects"} for one in outcome.verdicts]
    tables = {"answers": answers, "effects": effects}
    tables |= {"models": [asdict(one) for one in outcome.models], "planted": [asdict(one) for one in outcome.planted]}
    run.log({name: _table(rows) for name, rows in tables.items() if rows})
    report = out / "report.html"
    page = report.read_text()
    run.log({f"figures/{name}": wandb.Html(figure, inject=False) for name, figure in figures_of(page).items()})
    run.log({"report": wandb.Html(page, inject=False)})
    artifact = wandb.Artifact(f"report-{run.id}", "report")
    for path in (report, out / "results.json"):
        artifact.add_file(str(path))
    run.log_artifact(artifact)
    run.finish()


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    import wandb

    return wandb.Table(columns=[*rows[0]], data=[[*row.values()] for row in rows])
