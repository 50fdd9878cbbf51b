"""The verb `impact` from the command line: one small run, and what is left of it by kills, jobs and ranks."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from impact_lightning.cli import main
from impact_lightning.suite.outcome import read_outcome

CONFIG = Path("tests/conf/impact.yaml")
ENV = {**os.environ, "COLUMNS": "120", "WANDB_MODE": "disabled"}


def command(out: Path, *words: str, config: Path = CONFIG) -> list[str]:
    return [sys.executable, "-m", "impact_lightning", "impact", "--config", str(config), "--out", str(out), *words]


def run(out: Path, *words: str, config: Path = CONFIG) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *words, config=config), capture_output=True, text=True, env=ENV, check=False)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("impact") / "run"
    done = run(out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13/13" in done.stdout
    assert str(out / "report.html") in done.stdout
    return out


def test_a_run_measures_every_level(finished: Path) -> None:
    outcome = read_outcome(finished / "results.json")
    assert {unit.state for unit in outcome.units} == {"done"}
    assert {(one.level, one.model) for one in outcome.verdicts} == {
        (level, "wanda50") for level in ("neurons", "sae", "circuits", "attribution")
    }
    assert [one.name for one in outcome.models] == ["dense", "wanda50"]
    assert outcome.models[1].sparsity == pytest.approx(0.5, abs=0.01)
    assert all(one.top1 >= 0 for one in outcome.models)
    assert {one.level for one in outcome.planted} == {"neurons", "sae", "circuits", "attribution"}
    assert all(entry.record.protocol and entry.record.data for entry in outcome.entries if entry.level)


def test_a_run_leaves_a_report_and_tables(finished: Path) -> None:
    assert "wanda50" in (finished / "report.html").read_text()
    for name in ("records", "answers", "effects", "models", "units", "planted"):
        assert (finished / "tables" / f"{name}.csv").read_text().count("\n") > 1
    again = yaml.safe_load((finished / "impact.yaml").read_text())
    assert again["models"]["wanda50"]["init_args"]["sparsity"] == 0.5


def test_the_written_configuration_gives_the_same_units(finished: Path) -> None:
    done = run(finished, "--dry_run", config=finished / "impact.yaml")
    assert done.returncode == 0, done.stderr
    assert "13 units, 13 of them done" in done.stdout


def test_a_second_start_does_nothing_again(finished: Path) -> None:
    before = {name: (finished / name).read_bytes() for name in ("results.json", "report.html")}
    done = run(finished)
    assert done.returncode == 0
    assert "begins" not in done.stdout
    for name, content in before.items():
        assert (finished / name).read_bytes() == content


def test_the_report_is_made_from_the_folder_alone(finished: Path) -> None:
    before = (finished / "report.html").read_bytes()
    (finished / "report.html").unlink()
    words = [sys.executable, "-m", "impact_lightning", "report", str(finished)]
    done = subprocess.run(words, capture_output=True, text=True, env=ENV, check=False)
    assert done.returncode == 0, done.stderr
    assert (finished / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.root", "x"], "root"),
        (["--reference", "other"], "reference 'other'"),
        (["--levels.circuits.model", "{mean_imges: 4}"], "unit circuits/fit"),
        (["--trainer", "{max_epoch: 3}"], "max_epoch"),
        (["--levels.sae.data.sites", "[blocks.7.resid_post]"], "no site 'blocks.7.resid_post'"),
        (["--levels.circuits.data.tasks", "[{readout: rest, classes: [9]}]"], "class 9 is none of"),
        (["--shard", "3/2"], "3/16"),
        (["--jobs", "0"], "jobs"),
        (["--margin", "-1"], "margin"),
        (["--launcher", "'a"], "launcher"),
        (["--backbone.model_args.img_size", "64"], "backbone"),
        (["--backbone.name", "resnet18"], "resnet18"),
    ],
)
def test_mistakes_are_named_before_any_work(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["impact", "--config", str(CONFIG), "--out", str(tmp_path / "none"), *words])
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not (tmp_path / "none").exists()


def test_a_unit_that_fails_is_shown_and_the_others_go_on(tmp_path: Path) -> None:
    few = "{sites: [blocks.0.resid_post], batch_size: 256, image_batch_size: 32, buffer_images: 512}"
    off = ["--levels.neurons", "null", "--levels.circuits", "null", "--levels.attribution", "null"]
    done = run(tmp_path / "run", *off, "--levels.sae.data", few)
    assert done.returncode == 1
    assert "failed" in done.stdout
    outcome = read_outcome(tmp_path / "run" / "results.json")
    states = {unit.name: unit.state for unit in outcome.units}
    assert states["sae/dense/fit"] == "failed"
    assert states["sae/dense/test"] == "skipped"
    assert states["wanda50/test"] == "done"
    assert "buffer_images 512" in next(unit.error for unit in outcome.units if unit.name == "sae/dense/fit")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "buffer_images 512" in page
    assert "Circuit viewer" not in page  # nobody asked for it
    assert str(tmp_path) not in (tmp_path / "run" / "results.json").read_text()


def kill_family(process: "subprocess.Popen[str]") -> None:
    """Kill the command as the kernel does; its units have to die with it."""
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_ten_kills_change_nothing(finished: Path, tmp_path: Path) -> None:
    rng, out = random.Random(0), tmp_path / "run"
    for _ in range(10):
        process = subprocess.Popen(command(out), env=ENV, stdout=subprocess.DEVNULL, text=True)
        time.sleep(rng.uniform(8, 25))  # the imports take some of it
        kill_family(process)
    done = run(out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()


@pytest.mark.slow
def test_jobs_that_share_the_plan_change_nothing(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shards = [command(out, "--shard", f"{number}/2", "--jobs", "1") for number in (1, 2)]
    processes = [subprocess.Popen(words, env=ENV, stdout=subprocess.DEVNULL) for words in shards]
    assert [process.wait() for process in processes] == [0, 0]
    assert (out / "results.json").read_bytes() == (finished / "results.json").read_bytes()


@pytest.mark.slow
def test_two_ranks_measure_the_same(finished: Path, tmp_path: Path) -> None:
    """The models are given; dictionaries and circuits are trained by one rank, and by two."""
    [dense] = finished.glob("units/dense/fit-*/checkpoints/best.ckpt")
    [wanda] = finished.glob("units/wanda50/finetune-*/checkpoints/best.ckpt")
    config = yaml.safe_load(CONFIG.read_text())
    config["models"] = {
        name: {"class_path": "Given", "init_args": {"weights": str(path)}}
        for name, path in (("dense", dense), ("wanda50", wanda))
    }
    found = []
    for ranks in (1, 2):
        config["trainer"] |= {"devices": ranks, "strategy": "ddp_fork" if ranks == 2 else "auto"}
        path = tmp_path / f"{ranks}.yaml"
        path.write_text(yaml.safe_dump(config))
        done = run(tmp_path / f"run{ranks}", config=path)
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(read_outcome(tmp_path / f"run{ranks}" / "results.json"))
    assert [one.answer for one in found[0].verdicts] == [one.answer for one in found[1].verdicts]
    assert len(found[0].entries) == len(found[1].entries) > 500
    for one, other in zip(found[0].entries, found[1].entries, strict=True):
        assert (one.unit, one.record.of, one.record.measure) == (other.unit, other.record.of, other.record.measure)
        exactly = one.level in ("", "attribution")
        numbers = pytest.approx(one.record.value, rel=0 if exactly else 1e-6, abs=0 if exactly else 1e-9, nan_ok=True)
        assert other.record.value == numbers, one.record.measure  # other levels sum, or train, in another order
