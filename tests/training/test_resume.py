"""A fit that is killed at any moment and continued ends with the weights of one that was not."""

import csv
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from impact_lightning import cli
from impact_lightning.results import read_results
from impact_lightning.training import checkpoint
from tests.distributed import free_port

CONFIG = Path(__file__).parents[1] / "conf" / "tiny.yaml"
STEPS = 21  # 60 images in batches of 8, three epochs


def fit(run: Path, *more: str) -> None:
    cli.main(["fit", f"--config={CONFIG}", f"--dir={run}", "--ckpt_path=last", *more])


def start(body: Callable[[], None], **environment: str) -> Any:
    """Start `body` in a forked process."""

    def target() -> None:
        os.environ.update(environment)
        torch.set_num_threads(1)  # a forked process cannot use the parent's thread pool
        body()

    process = get_context("fork").Process(target=target)
    process.start()
    return process


def in_a_process(body: Callable[[], None]) -> int:
    """Run `body` in a process of its own and return its exit code; minus the signal when it was killed."""
    process = start(body)
    process.join()
    return int(process.exitcode)


def on_two_ranks(body: Callable[[], None]) -> None:
    """Run `body` in two processes with the environment that torchrun gives them."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [start(body, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


def weights(run: Path) -> dict[str, Tensor]:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == STEPS
    state: dict[str, Tensor] = content["state_dict"]
    return state


def assert_same(run: Path, reference: Path) -> None:
    ours, theirs = weights(run), weights(reference)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    assert in_a_process(lambda: fit(run)) == 0
    return run


class KillAt(Callback):
    """Kill this process at a step, before or after it was made."""

    def __init__(self, step: int, hook: str) -> None:
        self.step = step
        self.hook = hook

    def _maybe(self, hook: str, trainer: Trainer) -> None:
        if hook == self.hook and trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._maybe("before the step", trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._maybe("after the step", trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._maybe("in validation", trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._maybe("after the epoch", trainer)


def killed_fit_of(body: Callable[[], None], step: int, hook: str = "before the step") -> Callable[[], None]:
    """Return `body`, a fit, with a kill at a step."""

    def killed() -> None:
        setattr(cli, "ResultsWriter", lambda: KillAt(step, hook))  # noqa: B010  # in this process only
        body()

    return killed


def killed_fit(run: Path, step: int, hook: str, *more: str) -> Callable[[], None]:
    return killed_fit_of(lambda: fit(run, *more), step, hook)


HOOKS = ("before the step", "after the step", "in validation", "after the epoch")


@pytest.mark.parametrize("hook", HOOKS)
def test_a_kill_at_random_steps_changes_nothing(hook: str, tmp_path: Path, uninterrupted: Path) -> None:
    draw = random.Random(hook)
    for step in sorted(draw.sample(range(1, STEPS), 2)):
        in_a_process(killed_fit(tmp_path, step, hook, f"--checkpoint.every_n_steps={draw.choice([1, 2, 5])}"))
    assert in_a_process(lambda: fit(tmp_path)) == 0
    assert_same(tmp_path, uninterrupted)


@pytest.mark.parametrize(
    "more",
    [
        ("--trainer.accumulate_grad_batches=2",),
        ("--trainer.val_check_interval=3",),
        ("--trainer.limit_val_batches=0", "--checkpoint.monitor=null"),
        ("--data.workers=1",),
    ],
    ids=lambda more: more[0].split(".")[1],
)
def test_a_kill_changes_nothing_under_other_schedules(more: tuple[str, ...], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert in_a_process(lambda: fit(whole, *more)) == 0
    for step in (4, 9):
        in_a_process(killed_fit(killed, step, "before the step", *more, "--checkpoint.every_n_steps=1"))
    assert in_a_process(lambda: fit(killed, *more)) == 0
    ours, theirs = (
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for r in (killed, whole)
    )
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_the_end_of_an_epoch_is_saved_without_validation(tmp_path: Path) -> None:
    quiet = ("--trainer.limit_val_batches=0", "--checkpoint.monitor=null", "--checkpoint.every_n_steps=7")
    in_a_process(killed_fit(tmp_path, 10, "before the step", *quiet))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7


def test_a_kill_while_a_checkpoint_is_written_changes_nothing(tmp_path: Path, uninterrupted: Path) -> None:
    def body() -> None:
        save, calls = torch.save, []

        def half(content: object, file: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                file.write(b"half a checkpoint")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            save(content, file)

        checkpoint.torch.save = half  # type: ignore[attr-defined]  # in this process only
        fit(tmp_path, "--checkpoint.every_n_steps=2")

    assert in_a_process(body) == -signal.SIGKILL
    assert in_a_process(lambda: fit(tmp_path)) == 0
    assert_same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_kills_at_random_times_change_nothing(tmp_path: Path, uninterrupted: Path) -> None:
    draw = random.Random(0)
    for _ in range(10):
        process = start(lambda: fit(tmp_path, "--checkpoint.every_n_steps=1"))
        time.sleep(draw.uniform(0.5, 3.0))
        process.kill()
        process.join()
    assert in_a_process(lambda: fit(tmp_path)) == 0
    assert_same(tmp_path, uninterrupted)


# Draws differ between ranks, so these runs make none; the average of the weights stays.
NO_DRAWS = (
    "--model.init_args.mixing=null",
    "--model.init_args.backbone.model_args={img_size: 16, patch_size: 8, embed_dim: 24, depth: 2, num_heads: 3}",
)


def losses(run: Path) -> dict[int, float]:
    """Return the logged loss of every step, over all starts of a run."""
    found: dict[int, float] = {}
    for path in sorted(run.glob("logs/*/metrics.csv")):
        with path.open() as file:
            found |= {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    return found


def test_two_ranks_continue_what_one_rank_began(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert in_a_process(lambda: fit(one, *NO_DRAWS)) == 0
    in_a_process(killed_fit(two, 10, "after the step", *NO_DRAWS, "--checkpoint.every_n_steps=1"))
    on_two_ranks(lambda: fit(two, *NO_DRAWS, "--trainer.devices=2"))
    curve = losses(two)
    assert set(range(10, STEPS)) <= curve.keys()
    assert curve == pytest.approx({step: losses(one)[step] for step in curve}, rel=1e-6)


def test_two_ranks_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert in_a_process(lambda: fit(one, *NO_DRAWS)) == 0
    on_two_ranks(lambda: fit(two, *NO_DRAWS, "--trainer.devices=2"))
    assert len(losses(one)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)


def test_two_ranks_measure_exactly_what_one_rank_measures(tmp_path: Path, uninterrupted: Path) -> None:
    def words(run: str, *more: str) -> list[str]:
        checkpoint = f"--ckpt_path={uninterrupted / 'checkpoints' / 'last.ckpt'}"
        return ["test", f"--config={CONFIG}", f"--dir={tmp_path / run}", checkpoint, *more]

    assert in_a_process(lambda: cli.main(words("one"))) == 0
    on_two_ranks(lambda: cli.main(words("two", "--trainer.devices=2")))
    one, two = (read_results(tmp_path / run / "results.json") for run in ("one", "two"))
    assert {record.measure for record in one} == {"top1", "loss", "weight_density"}
    assert {record.n for record in one if record.measure != "weight_density"} == {21}
    assert two == one  # 21 images in batches of 8: the ranks are uneven


def test_more_ranks_than_evaluation_batches_measure_the_same(tmp_path: Path, uninterrupted: Path) -> None:
    checkpoint = f"--ckpt_path={uninterrupted / 'checkpoints' / 'last.ckpt'}"
    words = ["test", f"--config={CONFIG}", f"--dir={tmp_path}", checkpoint, "--data.eval_batch_size=64"]
    on_two_ranks(lambda: cli.main([*words, "--trainer.devices=2"]))
    counts = {record.measure: record.n for record in read_results(tmp_path / "results.json")}
    assert counts["top1"] == counts["loss"] == 21


def test_a_best_checkpoint_whose_link_a_kill_prevented_is_linked_on_restart(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def body() -> None:
        def killed(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(checkpoint, "link_or_copy", killed)  # noqa: B010  # in this process only
        fit(run)

    assert in_a_process(body) == -signal.SIGKILL
    assert not (run / "checkpoints" / "best.ckpt").exists()
    assert in_a_process(lambda: fit(run, "--checkpoint.mode=min", "--trainer.limit_val_batches=0")) == 0
    assert (run / "checkpoints" / "best.ckpt").exists()
