"""The verb `impact`: the four levels over every model, and a report."""

import fcntl
import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from impact_lightning.backbones import Backbone
from impact_lightning.files import atomic_write
from impact_lightning.report.page import write_report
from impact_lightning.suite.checks import check_plan, image_fingerprints, open_images
from impact_lightning.suite.collect import collect, write_tables
from impact_lightning.suite.estimate import Cost, estimate, scales
from impact_lightning.suite.levels import Levels
from impact_lightning.suite.outcome import FILE, Outcome, write_outcome
from impact_lightning.suite.plan import Plan, make_plan, with_data
from impact_lightning.suite.progress import Progress, clock
from impact_lightning.suite.runner import Runner, Share, cores, times
from impact_lightning.suite.sources import Config, Shared, Source
from impact_lightning.suite.work import plain
from impact_lightning.training.outcome_tracking import track_outcome
from impact_lightning.types import UserError

LOCK_PATIENCE = 5.0  # seconds that the units of a killed run have to end


def impact(
    *,
    data: Config,
    backbone: Backbone,
    models: dict[str, Source],
    out: Path,
    levels: Levels = Levels(),  # noqa: B008  # never changes, and help shows its fields
    reference: str = "dense",
    seeds: list[int] = [0],  # noqa: B006  # never changes
    trainer: Config = {},  # noqa: B006
    margin: float = 0.1,
    title: str = "",
    wandb: str | None = None,
    jobs: int | Literal["auto"] = 1,
    launcher: str = "",
    shard: str | None = None,
    dry_run: bool = False,
) -> None:
    """Ask of several models, at four levels, whether they are easier to understand than a reference; write a report.

    Everything that is missing is made: models are trained, pruned and fine-tuned, dictionaries and circuits are fitted,
    and all of it is tested. Each of these units is one command of this program, is done once, and is kept below
    `out/units` by a fingerprint of everything that it depends on. A run that was killed goes on when the same command
    is given again; so does one with other options, with the units that these leave as they were.

    Args:
        data: The images: `class_path` and `init_args`, as for `fit`.
        backbone: The architecture of the models.
        models: How each model comes to be, by name: `Trained`, `Tuned`, `Pruned` or `Given`.
        out: Folder of the run.
        levels: Options of the levels; a level that is null is left out.
        reference: The model that the others are compared with.
        seeds: Seeds of training: every model is made and compared once for each.
        trainer: Options of the trainers of all units: `accelerator`, `devices`, `precision`, `logger`, ...
        margin: Share of what the reference has beyond chance; smaller differences are never called easier or harder,
            and the same where their whole interval is below it.
        title: What the report is called; the name of the folder by default.
        wandb: W&B project: units become runs of one group named by the title, and one more holds the answers and the
            report. The environment decides the rest, such as WANDB_ENTITY and WANDB_MODE.
        jobs: Units at a time; they share the cores, and the GPUs. `auto`: one a GPU, or one for every two cores.
        launcher: Words before each unit's command, such as `srun python` or `torchrun --nproc_per_node 8`; the trainer
            needs the same `devices`, here 8.
        shard: Do the units of one of several jobs alone, such as `3/16`; the jobs share the folder.
        dry_run: Print the plan with an estimate of time and disk, and do nothing.
    """
    _refuse_ranks()
    share = Share.parse(shard)
    data, trainer, levels = _of_class(plain(data)), plain(trainer) or {}, levels or Levels()
    words = _words(launcher)
    if not 0 <= margin < math.inf:
        raise UserError(f"margin {margin}: it is a share, such as 0.1")
    images = open_images(data, "data")
    shared = Shared(data, {**_backbone(backbone), "num_classes": images.n_classes}, _quiet(trainer, title or out.name))
    plan = make_plan(models, levels, shared, seeds, reference)
    check_plan(plan)
    plan = with_data(plan, image_fingerprints(plan))
    costs = estimate(plan, scales(backbone, partial(open_images, where="data")))
    n_jobs = _jobs(jobs)
    if dry_run:
        _show(plan, out, costs, n_jobs)
        return
    configuration = _configured(
        dict(
            title=title, data=data, backbone=_backbone(backbone), models=models, reference=reference, seeds=seeds,
            trainer=trainer, levels=levels, margin=margin,
        )
    )  # fmt: skip  # one line a key says no more
    with _alone(out, share):
        with atomic_write(out / "impact.yaml") as file:
            file.write(yaml.safe_dump(configuration, sort_keys=False).encode())
        told = Progress(plan, costs, n_jobs, times(plan, out), share.names(plan))
        runner = Runner(plan, out, n_jobs, share, told, words, wandb)
        try:
            runner.run()
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from here", file=sys.stderr)
            raise SystemExit(130) from None
        with (out / ".lock-results").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of several jobs, one collects and writes at a time: the last has all
            outcome = collect(
                plan, out, title=title or out.name, configuration=configuration, margin=margin, errors=runner.errors
            )
            _write(out, outcome, plan)
        if wandb is not None:
            track_outcome(outcome, out, wandb)
    if any(unit.state in ("failed", "skipped") for unit in outcome.units):
        raise SystemExit(1)


def _write(out: Path, outcome: Outcome, plan: Plan) -> None:
    """Write and show everything that is made from what units left."""
    write_outcome(out / FILE, outcome)
    write_tables(out / "tables", outcome)
    took = {name: {"seconds": seconds} for name, seconds in times(plan, out).items()}
    with atomic_write(out / "plan.json") as file:
        command = shlex.join(["python", "-m", "impact_lightning", *sys.argv[1:]])
        file.write((json.dumps({"command": command, "units": took}, indent=1) + "\n").encode())
    show_outcome(outcome, out)
    write_report(out)


# ------------------------------------------------------------------------------------------------------------- options


def _refuse_ranks() -> None:
    """Refuse to be started by torchrun or srun in several processes: it starts commands itself."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise UserError(
            "start `impact` in one process: it starts the units itself, in several where trainer.devices or --launcher "
            "say so (`--launcher 'torchrun --nproc_per_node 8'`, `--launcher 'srun python'`)"
        )


def _words(launcher: str) -> list[str]:
    """Return the words of a launcher."""
    try:
        return shlex.split(launcher)
    except ValueError as error:
        raise UserError(f"launcher {launcher!r}: {error}") from error


def _backbone(backbone: Backbone) -> Config:
    """Return a backbone as a configuration, without what is as it always is."""
    default = plain(Backbone(""))
    return {key: value for key, value in plain(backbone).items() if value != default[key]}


def _of_class(data: Config) -> Config:
    """Return a class and its options; the command line puts `--data.root` beside them."""
    beside = {key: value for key, value in data.items() if key not in ("class_path", "init_args")}
    return {"class_path": data.get("class_path"), "init_args": {**(data.get("init_args") or {}), **beside}}


def _quiet(trainer: Config, group: str) -> Config:
    """Return options of trainers whose output goes to a file; runs of W&B are one group."""
    os.environ.setdefault("WANDB_RUN_GROUP", group)
    return {"enable_progress_bar": False, **trainer}


def _jobs(jobs: int | str) -> int:
    """Return how many units run at a time."""
    import torch

    if jobs == "auto":
        return max(1, torch.cuda.device_count() or cores() // 2)
    if isinstance(jobs, str) or jobs < 1:
        raise UserError(f"jobs must be at least 1, or `auto`; got {jobs}")
    return jobs


def _configured(value: Any) -> Any:
    """Return options as a configuration holds them, sources with the names of their classes."""
    if isinstance(value, Source):
        return {"class_path": type(value).__name__, "init_args": plain(value)}
    if isinstance(value, dict):
        return {key: _configured(item) for key, item in value.items()}
    return plain(value)


@contextmanager
def _alone(out: Path, share: Share) -> Iterator[None]:
    """Keep the folder to this job, or to jobs that share the plan: two that do the same are in each other's way."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as whole, (out / f".lock-{share.number}-of-{share.of}").open("w") as part:
        _lock(whole, fcntl.LOCK_SH if share.of > 1 else fcntl.LOCK_EX, out)
        _lock(part, fcntl.LOCK_EX, out)
        yield


def _lock(file: IO[str], kind: int, out: Path) -> None:
    """Lock a file until it is closed; the units of a run that was killed may hold it for a moment."""
    until = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise UserError(f"{out}: another `impact` is at work in this folder") from None
            time.sleep(0.1)


# -------------------------------------------------------------------------------------------------------------- shown


def _show(plan: Plan, out: Path, costs: Mapping[str, Cost], jobs: int) -> None:
    """Print the plan."""
    done = times(plan, out)
    console = Console(highlight=False, soft_wrap=True)
    width = max(map(len, plan.works))
    for name, work in plan.works.items():
        mark, about = ("✓", "done") if name in done else (" ", clock(costs[name].seconds))
        console.print(f"{mark} {name:<{width}}  {work.verb:<7}  {about:>18}  {_size(costs[name].bytes):>7}")
    left = sum(cost.seconds for name, cost in costs.items() if name not in done) / jobs
    room = sum(cost.bytes for name, cost in costs.items() if name not in done)
    free = shutil.disk_usage(next(path for path in (out, *out.absolute().parents) if path.exists())).free
    console.print(
        f"\n{len(plan.works)} units, {len(done)} of them done. With {jobs} at a time the rest takes about ", end=""
    )
    console.print(f"{clock(left)}, and {_size(room)} of {_size(free)} that are free.")
    if room > free:
        console.print("[bold red]The disk is too small for that.[/]")
    console.print("A rough estimate: one forward was measured here, and others were counted.")


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


ANSWERS = {"easier": "green", "harder": "red", "same": "blue", "mixed": "yellow"}


def show_outcome(outcome: Outcome, out: Path) -> None:
    """Print the answers, and what failed."""
    console = Console(highlight=False)
    table = Table(title="easier to understand than the reference?", title_justify="left", header_style="bold")
    levels = list(dict.fromkeys(one.level for one in outcome.verdicts))
    for name in ("model", "zeros", "top-1", *levels):
        table.add_column(name)
    answers = {(one.model, one.level): one.answer for one in outcome.verdicts}
    for model in outcome.models:
        said = [answers.get((model.name, level), "reference") for level in levels]
        cells = [f"[{ANSWERS.get(one, 'dim')}]{one}[/]" for one in said]
        table.add_row(escape(model.name), _share(model.sparsity), _share(model.top1), *cells)
    console.print(table)
    for unit in outcome.units:
        if unit.state != "done":
            console.print(f"[bold red]{unit.state}[/]  {escape(unit.name)}: {escape(unit.error)}")
            if unit.state == "failed":
                console.print(f"        [dim]{escape(str(out / unit.folder / 'log.txt'))}[/]")


def _share(value: float) -> str:
    return "–" if value != value else f"{value:.1%}"
