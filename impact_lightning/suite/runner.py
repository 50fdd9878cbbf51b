"""The runner: does the units of a plan, several at a time, each in a process of its own."""

import ctypes
import json
import os
import runpy
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from impact_lightning.files import atomic_write
from impact_lightning.results import read_results
from impact_lightning.suite.outcome import State
from impact_lightning.suite.plan import Plan
from impact_lightning.suite.work import Work, placed
from impact_lightning.types import UserError

DONE, FAILED, LOG, CONFIG, RESULTS = "done.json", "failed.json", "log.txt", "unit.yaml", "results.json"
POLL = 0.05  # seconds between two looks at what runs
LOGGER = "lightning.pytorch.loggers.WandbLogger"
PATIENCE = 5.0  # between two looks at what other jobs do
GRACE = 600.0  # seconds in which another job may still start, and try again what has failed before
DEATH = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Share:
    """The units that this job does: `3/16` is the third of sixteen jobs."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str | None) -> "Share":
        """Return the share that a text names."""
        if text is None:
            return cls()
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UserError(f"shard {text!r}: give the number of this job and that of all jobs, such as 3/16")
        return cls(int(number), int(of))

    def names(self, plan: Plan) -> set[str]:
        """Return the units that belong to the job."""
        return {name for place, name in enumerate(plan.works) if place % self.of == self.number - 1}


@dataclass(frozen=True)
class Running:
    """A unit at work."""

    name: str
    pid: int
    slot: int
    said: int  # bytes of its log that are of earlier starts
    began: float


Told = Callable[[str, State, float], None]  # name, what came of it (or `waiting`: it begins), seconds


class Runner:
    """Does units as soon as those that they read from are done.

    Args:
        plan: The plan.
        out: Folder of the run.
        jobs: Units at a time.
        share: Which of the units this job does.
        launcher: Words before the command of each unit, such as `srun python` or `torchrun --nproc_per_node 8`.
        project: W&B project that units are tracked in, each as a run of its own; none by default.
        told: Is told when a unit begins and ends.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        jobs: int,
        share: Share,
        told: Told,
        launcher: Sequence[str] = (),
        project: str | None = None,
    ) -> None:
        self.plan = plan
        self.out = out
        self.jobs = jobs
        self.launcher = launcher
        self.told = told
        self.project = project
        self.own = share.names(plan)
        self.running: list[Running] = []
        self.states: dict[str, State] = {}
        self.errors: dict[str, str] = {}
        self.began = time.time()
        self.asked = 0.0  # when the disk was looked at
        self.awaited: set[str] = set()

    def run(self) -> None:
        """Do everything that can be done; what fails is remembered in `errors`."""
        for name in self.own:
            self._file(name, FAILED).unlink(missing_ok=True)  # of an earlier start: it is tried again
        self._recall(self.plan.works.keys())
        try:
            while self._look():
                if not self.running:
                    self._say_what_is_awaited()
                time.sleep(POLL if self.running else PATIENCE)
        finally:
            self._stop()

    # ------------------------------------------------------------------------------------------------------ states

    def _look(self) -> bool:
        """Take note of what has ended, begin what can be, and return whether anything is left."""
        for one in [*self.running]:
            self._reap(one)
        if time.monotonic() - self.asked > PATIENCE:
            self._recall(self.plan.works.keys() - self.own)
        busy = {one.name for one in self.running}
        for name, work in self.plan.works.items():
            if name in self.own and name not in self.states and name not in busy:
                self._consider(name, work)
        return bool(self.running) or bool(self.own - self.states.keys())

    def _recall(self, names: Collection[str]) -> None:
        """Take note of what is on the disk: done before, or by another job."""
        self.asked = time.monotonic()
        for name in self.plan.works:  # in their order: a failure skips what comes after it
            if name in names and name not in self.states:
                if is_whole(self.plan.works[name], self._file(name, ""), self.plan.fingerprints[name]):
                    self.states[name] = "done"
                elif name not in self.own:
                    self._hear_of(name, self.plan.works[name])

    def _consider(self, name: str, work: Work) -> None:
        """Skip a unit that cannot be done, or begin one that can."""
        if lost := [one for one in work.after if self.states.get(one) in ("failed", "skipped")]:
            self.states[name], self.errors[name] = "skipped", f"{lost[0]} is not there"
            self.told(name, "skipped", 0.0)
        elif len(self.running) < self.jobs and all(self.states.get(one) == "done" for one in work.after):
            self._begin(name, work)

    def _say_what_is_awaited(self) -> None:
        """Say, once each, which units of other jobs the own ones need."""
        needed = {one for name in self.own if name not in self.states for one in self.plan.works[name].after}
        for name in sorted(needed - self.own - self.states.keys() - self.awaited):
            self.awaited.add(name)
            print(f"waiting for {name}, which another job does", flush=True)

    def _hear_of(self, name: str, work: Work) -> None:
        """Take note of a failure in another job; an older one may be tried again by a job that is yet to start."""
        if lost := [one for one in work.after if self.states.get(one) in ("failed", "skipped")]:
            self.states[name], self.errors[name] = "skipped", f"{lost[0]} is not there"
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = self._file(name, FAILED)
            error = str(json.loads(note.read_text())["error"])
            if note.stat().st_mtime >= self.began or time.time() - self.began > GRACE:
                self.states[name], self.errors[name] = "failed", error

    def _file(self, name: str, file: str) -> Path:
        return self.out / self.plan.folder(name) / file

    # --------------------------------------------------------------------------------------------------- processes

    def _begin(self, name: str, work: Work) -> None:
        """Start the process of a unit."""
        folder = self._file(name, "")
        folder.mkdir(parents=True, exist_ok=True)
        words = self._words(name, work, folder)
        if work.verb == "test":  # nothing of an earlier start, whole or not, is to stand among what is measured now
            (folder / RESULTS).unlink(missing_ok=True)
        said = (folder / LOG).stat().st_size if (folder / LOG).exists() else 0
        slot = min(set(range(self.jobs)) - {one.slot for one in self.running})
        self.told(name, "waiting", 0.0)
        sys.stdout.flush()
        sys.stderr.flush()
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            _be_unit(parent, words, folder / LOG, self.launcher, self.jobs, slot)
        self.running.append(Running(name, pid, slot, said, time.monotonic()))

    def _words(self, name: str, work: Work, folder: Path) -> list[str]:
        """Write the configuration of a unit, and return the words of its command."""
        config = placed(work.config, lambda other: str(self._file(other, "")))
        if self.project is not None and "trainer" in config:  # no part of the fingerprint: it changes no number
            options = {"project": self.project, "name": name}
            config["trainer"]["logger"] = {"class_path": LOGGER, "init_args": options}
        with atomic_write(folder / CONFIG) as file:
            file.write(yaml.safe_dump(config, sort_keys=False).encode())
        words = [work.verb, "--config", str(folder / CONFIG)]
        if work.verb in ("prune", "extract"):
            return [*words, "--out", str(folder / ("pruned.safetensors" if work.verb == "prune" else "shards"))]
        words += ["--dir", str(folder)]
        if work.checkpoint is not None:
            return [*words, "--ckpt_path", placed(work.checkpoint, lambda other: str(self._file(other, "")))]
        return [*words, "--ckpt_path", "last"] if work.verb == "fit" else words

    def _reap(self, one: Running) -> None:
        """Take note of the end of a process."""
        pid, status = os.waitpid(one.pid, os.WNOHANG)
        if pid == 0:
            return
        self.running.remove(one)
        seconds, code = time.monotonic() - one.began, os.waitstatus_to_exitcode(status)
        error = "" if code == 0 else _why(code, self._file(one.name, LOG), one.said)
        self.states[one.name] = "failed" if error else "done"
        file, content = (FAILED, {"error": error}) if error else (DONE, {})
        with atomic_write(self._file(one.name, file)) as written:
            fingerprint = self.plan.fingerprints[one.name]
            written.write(json.dumps({"fingerprint": fingerprint, "seconds": seconds, **content}).encode())
        if error:
            self.errors[one.name] = error
        self.told(one.name, self.states[one.name], seconds)

    def _stop(self) -> None:
        """End what still runs, after an error or an interrupt."""
        for one in self.running:
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGTERM)
        for one in self.running:
            with suppress(ChildProcessError):
                os.waitpid(one.pid, 0)


def is_whole(work: Work, folder: Path, fingerprint: str) -> bool:
    """Return whether a unit has ended well, and what others need of it is still there."""
    if not is_done(folder / DONE, fingerprint):
        return False
    if work.verb == "test":
        try:
            read_results(folder / RESULTS)
        except UserError:
            return False
        return True
    made = {"fit": "checkpoints/last.ckpt", "prune": "pruned.safetensors", "extract": "shards/manifest.json"}
    return (folder / made[work.verb]).exists()


def is_done(path: Path, fingerprint: str) -> bool:
    """Return whether a unit with this fingerprint has ended well."""
    return seconds_of(path, fingerprint) is not None


def seconds_of(path: Path, fingerprint: str) -> float | None:
    """Return how long a unit that has ended well took."""
    try:
        content = json.loads(path.read_text())
        return float(content["seconds"]) if content["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def states_on_disk(plan: Plan, out: Path) -> Iterator[tuple[str, State, str]]:
    """Yield what came of each unit in any job, and why."""
    for name, fingerprint in plan.fingerprints.items():
        folder = out / plan.folder(name)
        if is_done(folder / DONE, fingerprint):
            yield name, "done", ""
            continue
        try:
            yield name, "failed", str(json.loads((folder / FAILED).read_text())["error"])
        except (OSError, ValueError, KeyError, TypeError):
            yield name, "waiting", ""


# ------------------------------------------------------------------------------------------------------ inside a unit


def _be_unit(parent: int, words: list[str], log: Path, launcher: Sequence[str], jobs: int, slot: int) -> None:
    """Become the process of a unit: never returns.

    The program is already in memory, which saves the seconds that it takes to import it.
    """
    code = 1
    try:
        _die_with(parent)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _write_to(log)
        print("$", shlex.join([*(launcher or ["python"]), "-m", "impact_lightning", *words]), flush=True)
        _share_machine(jobs, slot)
        if launcher:
            try:
                os.execvp(launcher[0], [*launcher, "-m", "impact_lightning", *words])
            except OSError as error:
                print(f"error: launcher {launcher[0]!r} cannot be started: {error.strerror}")
                raise SystemExit(2) from error
        sys.argv = ["impact_lightning", *words]
        runpy.run_module("impact_lightning", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    """Let the kernel kill this process with its parent: two of them in one folder would be in each other's way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(1)


def _write_to(log: Path) -> None:
    """Let everything that is printed go to a file."""
    sys.stdout.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _share_machine(jobs: int, slot: int) -> None:
    """Give each of several units at a time its part of the cores, and a GPU of its own where there are several."""
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, cores() // jobs)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    gpus = torch.cuda.device_count()
    if jobs > 1 and gpus > 1:
        known = os.environ.get("CUDA_VISIBLE_DEVICES")  # what a scheduler has given: indices, or names of devices
        names = known.split(",") if known else [str(number) for number in range(gpus)]
        os.environ["CUDA_VISIBLE_DEVICES"] = names[slot % gpus]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _why(code: int, log: Path, earlier: int) -> str:
    """Return why a unit failed: what it said behind so many bytes, or which signal ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
    with suppress(OSError):
        text = log.read_bytes()[earlier:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (said or lines or [f"exit code {code}"])[-1]
    return f"exit code {code}"


def times(plan: Plan, out: Path) -> Mapping[str, float]:
    """Return the seconds that each unit that is done took."""
    found = {name: seconds_of(out / plan.folder(name) / DONE, one) for name, one in plan.fingerprints.items()}
    return {name: seconds for name, seconds in found.items() if seconds is not None}
