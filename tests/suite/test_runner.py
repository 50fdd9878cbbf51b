"""The runner: order, failures, kills, interrupts and jobs that share a plan; no real command is run."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from impact_lightning.suite import runner
from impact_lightning.suite.estimate import Cost
from impact_lightning.suite.outcome import State
from impact_lightning.suite.plan import Plan
from impact_lightning.suite.progress import Progress
from impact_lightning.suite.runner import FAILED, LOG, Runner, Share, states_on_disk, times
from impact_lightning.suite.work import Work
from impact_lightning.types import UserError


def chain(*, of: int = 3) -> Plan:
    """Return a -> b -> c, and a unit that stands alone."""
    works = [Work("a", "fit", {}, ("m",))]
    for name, before in zip("bcdefgh"[: of - 1], "abcdefg", strict=False):
        works.append(Work(name, "test", {"x": f"${{{before}}}/last.ckpt"}, ("m",)))
    works.append(Work("alone", "prune", {}, ("m",)))
    return Plan({work.name: work for work in works}, [])


Does = Callable[[str], None]


@pytest.fixture
def does(monkeypatch: pytest.MonkeyPatch) -> dict[str, Does]:
    """Let processes call these functions instead of commands, by the first letters of their folders."""
    actions: dict[str, Does] = {}

    def be_unit(parent: int, words: list[str], log: Path, launcher: list[str], jobs: int, slot: int) -> None:
        name = log.parent.name.rsplit("-", 1)[0]
        with (log.parent.parents[1] / "order.txt").open("a") as order:
            order.write(f"{name} {slot}\n")
        with log.open("a") as said:
            said.write(f"$ {' '.join(words)}\n")
        made = {"fit": "checkpoints/last.ckpt", "prune": "pruned.safetensors", "test": "results.json"}[words[0]]
        (log.parent / made).parent.mkdir(exist_ok=True)
        (log.parent / made).write_text('{"schema": 1, "records": []}')
        try:
            if name in actions:
                actions[name](str(log))
        except SystemExit as end:
            os._exit(int(str(end.code)))
        os._exit(0)

    monkeypatch.setattr(runner, "_be_unit", be_unit)
    monkeypatch.setattr(runner, "PATIENCE", 0.05)
    monkeypatch.setattr(runner, "GRACE", 0.5)
    return actions


def crashes(log: str) -> None:
    with Path(log).open("a") as file:
        file.write("Traceback\nKeyError: 4\n")
    raise SystemExit(1)


def run(plan: Plan, out: Path, jobs: int = 1, share: Share = Share()) -> tuple[Runner, list[tuple[str, State]]]:  # noqa: B008
    told: list[tuple[str, State]] = []
    (out / "units").mkdir(parents=True, exist_ok=True)
    made = Runner(plan, out, jobs, share, lambda name, state, seconds: told.append((name, state)))
    made.run()
    return made, told


def order(out: Path) -> list[str]:
    return [line.split()[0] for line in (out / "order.txt").read_text().splitlines()]


def fails(log: str) -> None:
    with Path(log).open("a") as file:
        file.write("much ado\nerror: there is no data\n")
    raise SystemExit(2)


def test_units_run_after_what_they_read_from(tmp_path: Path, does: dict[str, Does]) -> None:
    made, told = run(chain(), tmp_path)
    assert order(tmp_path) == ["a", "b", "c", "alone"]
    assert not made.errors
    assert told[:2] == [("a", "waiting"), ("a", "done")]
    assert set(times(chain(), tmp_path)) == {"a", "b", "c", "alone"}


def test_several_units_run_at_a_time(tmp_path: Path, does: dict[str, Does]) -> None:
    does["a"] = does["alone"] = lambda _: time.sleep(0.3)
    run(chain(), tmp_path, jobs=2)
    lines = (tmp_path / "order.txt").read_text().split()
    assert lines[:4] == ["a", "0", "alone", "1"] or lines[:4] == ["alone", "1", "a", "0"]


def test_what_is_done_is_not_done_again(tmp_path: Path, does: dict[str, Does]) -> None:
    run(chain(), tmp_path)
    _, told = run(chain(), tmp_path)
    assert not told
    assert len(order(tmp_path)) == 4


def test_a_failure_skips_what_needs_it_and_nothing_else(tmp_path: Path, does: dict[str, Does]) -> None:
    does["b"] = fails
    made, _ = run(chain(of=4), tmp_path)
    assert made.errors == {"b": "there is no data", "c": "b is not there", "d": "c is not there"}
    assert order(tmp_path) == ["a", "b", "alone"]
    assert {name: state for name, state, _ in states_on_disk(chain(of=4), tmp_path)} == {
        "a": "done",
        "b": "failed",
        "c": "waiting",
        "d": "waiting",
        "alone": "done",
    }


def test_what_failed_is_tried_again(tmp_path: Path, does: dict[str, Does]) -> None:
    does["b"] = fails
    run(chain(), tmp_path)
    del does["b"]
    made, told = run(chain(), tmp_path)
    assert not made.errors
    assert [name for name, state in told if state == "done"] == ["b", "c"]


def test_a_killed_unit_is_named_by_its_signal(tmp_path: Path, does: dict[str, Does]) -> None:
    does["a"] = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    made, _ = run(chain(), tmp_path)
    assert made.errors["a"] == "ended by SIGKILL, perhaps for want of memory"


def test_a_damaged_note_of_a_unit_that_is_done_lets_it_run_again(tmp_path: Path, does: dict[str, Does]) -> None:
    run(chain(), tmp_path)
    done = tmp_path / chain().folder("alone") / "done.json"
    for damaged in ("", "{", "[]", '{"fingerprint": "x", "seconds": 1}', '{"seconds": null}'):
        done.write_text(damaged)
        _, told = run(chain(), tmp_path)
        assert told == [("alone", "waiting"), ("alone", "done")]


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 7}', None])
def test_a_unit_whose_files_are_gone_is_done_again(tmp_path: Path, does: dict[str, Does], damage: str | None) -> None:
    run(chain(), tmp_path)
    results = tmp_path / chain().folder("c") / "results.json"
    results.unlink()
    if damage is not None:
        results.write_text(damage)
    _, told = run(chain(), tmp_path)
    assert told == [("c", "waiting"), ("c", "done")]
    (tmp_path / chain().folder("alone") / "pruned.safetensors").unlink()
    _, told = run(chain(), tmp_path)
    assert told == [("alone", "waiting"), ("alone", "done")]


def test_the_reason_of_a_failure_is_that_of_the_last_start(tmp_path: Path, does: dict[str, Does]) -> None:
    does["alone"] = fails
    run(chain(), tmp_path)
    does["alone"] = crashes
    made, _ = run(chain(), tmp_path)
    assert made.errors["alone"] == "KeyError: 4"


def test_an_old_failure_in_another_job_may_be_tried_again(tmp_path: Path, does: dict[str, Does]) -> None:
    plan = chain()
    folder = tmp_path / plan.folder("a")
    folder.mkdir(parents=True)
    (folder / FAILED).write_text(json.dumps({"error": "old"}))
    os.utime(folder / FAILED, (0, 0))
    pid = os.fork()
    if pid == 0:
        time.sleep(0.2)
        run(plan, tmp_path, share=Share(1, 2))
        os._exit(0)
    made, _ = run(plan, tmp_path, share=Share(2, 2))
    assert os.waitpid(pid, 0)[1] == 0
    assert not made.errors


def test_an_interrupt_ends_what_runs(tmp_path: Path, does: dict[str, Does]) -> None:
    does["a"] = lambda _: time.sleep(60)

    def interrupt(name: str, state: State, seconds: float) -> None:
        if name == "alone" and state == "done":
            raise KeyboardInterrupt

    (tmp_path / "units").mkdir()
    made = Runner(chain(), tmp_path, 2, Share(), interrupt)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert time.monotonic() - began < 10
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_jobs_share_the_units(tmp_path: Path, does: dict[str, Does]) -> None:
    plan = chain()
    parts = [Share(number, 2) for number in (1, 2)]
    assert sorted(name for share in parts for name in share.names(plan)) == sorted(plan.works)
    pid = os.fork()
    if pid == 0:
        run(plan, tmp_path, share=parts[0])
        os._exit(0)
    made, told = run(plan, tmp_path, share=parts[1])
    assert os.waitpid(pid, 0)[1] == 0
    assert {name for name, state in told if state == "done"} == {"b", "alone"}
    assert sorted(order(tmp_path)) == ["a", "alone", "b", "c"]
    assert not made.errors


@pytest.mark.parametrize(("known", "given"), [(None, "1"), ("4,5,6", "5"), ("GPU-a,GPU-b", "GPU-b")])
def test_each_unit_has_a_gpu_of_those_that_there_are(
    known: str | None, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3 if known is None else len(known.split(",")))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "" if known is None else known)
    if known is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    runner._share_machine(2, 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == given
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    runner._share_machine(1, 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"  # one at a time has all of them


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_unit_begins_only_while_its_parent_lives(*, is_alive: bool) -> None:
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        runner._die_with(parent if is_alive else parent + 1)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (7 if is_alive else 1)


def test_the_rest_is_that_of_this_job_and_without_what_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    plan = chain()
    told = Progress(plan, dict.fromkeys(plan.works, Cost(100.0, 0.0)), 1, {}, Share(1, 2).names(plan))
    assert told.left() == 200
    told("c", "skipped", 0.0)
    assert "skipped" in capsys.readouterr().out
    assert told.left() == 100
    assert Progress(plan, dict.fromkeys(plan.works, Cost(100.0, 0.0)), 2, {"a": 50.0}).left() == 75


def test_what_is_skipped_is_told(tmp_path: Path, does: dict[str, Does]) -> None:
    does["a"] = crashes
    _, told = run(chain(), tmp_path)
    assert ("b", "skipped") in told
    assert ("c", "skipped") in told


def test_a_failure_in_another_job_is_heard_of(tmp_path: Path, does: dict[str, Does]) -> None:
    plan = chain()
    folder = tmp_path / plan.folder("a")
    folder.mkdir(parents=True)
    (folder / FAILED).write_text(json.dumps({"error": "no room"}))
    made, _ = run(plan, tmp_path, share=Share(2, 2))
    assert made.errors == {"a": "no room", "b": "a is not there"}


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="3/16"):
        Share.parse(text)


def test_the_words_of_a_unit(tmp_path: Path, does: dict[str, Does]) -> None:
    run(chain(), tmp_path)
    said = (tmp_path / chain().folder("b") / LOG).read_text()
    assert "--ckpt_path" not in said
    assert "--ckpt_path last" in (tmp_path / chain().folder("a") / LOG).read_text()
    assert "--out" in (tmp_path / chain().folder("alone") / LOG).read_text()
    config = (tmp_path / chain().folder("b") / "unit.yaml").read_text()
    assert f"{tmp_path / chain().folder('a')}/last.ckpt" in config
