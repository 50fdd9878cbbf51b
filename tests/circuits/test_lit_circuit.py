"""`fit` learns circuits and `test` validates them, alike however they are run, and say what they cannot do."""

import math
from pathlib import Path

import pytest
import torch

from impact_lightning.cli import main
from tests.circuits.runs import (
    ONE,
    Records,
    assert_close,
    assert_same,
    backbone,
    fit,
    folders,
    measured,
    records_of,
    state,
    words_of,
)
from tests.data.pictures import write_folders
from tests.said import said
from tests.training.test_resume import in_a_process, killed_fit_of, on_two_ranks


@pytest.fixture(scope="module")
def whole(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fit of all tasks."""
    run = tmp_path_factory.mktemp("whole")
    fit(run, weights / "a.safetensors")
    return run


@pytest.fixture(scope="module")
def one(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fit of one task and its control."""
    run = tmp_path_factory.mktemp("one")
    fit(run, weights / "a.safetensors", ONE)
    return run


@pytest.fixture(scope="module")
def records(weights: Path, one: Path) -> Records:
    return measured(one, weights / "a.safetensors", ONE)


# ---------------------------------------------------------------------------------------------------- what is learnt


def test_only_circuits_are_in_a_checkpoint(whole: Path) -> None:
    content = state(whole)
    of_learner = ("thresholds", "prices.log_price", "prices.mean_loss", "good.thresholds", "good.is_known", "good.lost")
    assert content["state_dict"].keys() == {"batches", *(f"learners.tiny.{name}" for name in of_learner)}
    thresholds = content["state_dict"]["learners.tiny.thresholds"]
    assert thresholds.shape == (8, 11 * 12)  # four classes and their controls; 8 sites of 12 channels, one of 48
    assert thresholds.abs().max() <= 1
    assert content["circuits"]["tasks"][5] == ["rest", [1], [], True]


REAL = "tiny/cylinder or not/seed 0"
OF_ALL = {f"{size}_geometric_mean" for size in ("nodes", "live_nodes", "edges", "edges_over_density")}


def test_there_is_a_record_of_every_circuit_and_measure(records: Records) -> None:
    assert {of for of, _ in records} == {REAL, "tiny"}
    measures = {measure for of, measure in records if of == REAL}
    assert measures >= {"nodes", "live_nodes", "edges", "loss_alone", "loss_without", "p_sufficient", "ncq", "cpr"}
    assert measures >= {"loss_of_nonsense_labels", "switches_of_nonsense_labels", "completeness", "idle"}
    assert measures >= {"learnt_loss_of_nonsense_labels", "loss_to_reach", "loss_without_beside_others"}
    assert {measure for of, measure in records if of == "tiny"} <= OF_ALL
    for (of, measure), record in records.items():
        if of == REAL:
            assert record.n == 8
            assert len(record.notes) >= 1
            assert math.isfinite(record.value) or measure in ("density_ratio", "switches_of_nonsense_labels"), measure


def test_records_carry_their_protocol(records: Records) -> None:
    protocol = next(iter(records.values())).protocol
    learning = protocol["learning"]
    assert isinstance(learning, dict)
    assert learning["ablation"] == "mean"
    assert protocol["mean_images"] == 24
    assert protocol["target"] == {"kind": "relative", "value": 0.1}
    assert (protocol["train_images"], protocol["select_images"], protocol["report_images"]) == (6, 4, 4)
    assert protocol["task_seed"] == 0
    assert protocol["target_of"] == "the model"


@pytest.mark.parametrize("name", ["batch", "lr", "weight_decay", "temperature"])
def test_records_carry_how_circuits_were_learnt(name: str, records: Records) -> None:
    learning = next(iter(records.values())).protocol["learning"]
    assert isinstance(learning, dict)
    assert name in learning


def test_sizes_lie_within_the_model(records: Records) -> None:
    for (_, measure), record in records.items():
        if measure in ("nodes", "live_nodes"):
            assert 0 <= record.value <= 132
        if measure.startswith("p_"):
            assert 1 / 21 <= record.value <= 1
    for of in {of for of, measure in records if measure == "live_nodes"}:
        assert records[of, "live_nodes"].value <= records[of, "nodes"].value


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("--model.granularity=head", "--model.tie_qk=true"), marks=pytest.mark.slow),
        pytest.param(("--model.learning.ablation=mean_position",), marks=pytest.mark.slow),
        pytest.param(("--model.learning.ablation=zero", "--model.learning.penalty=1e-3"), marks=pytest.mark.slow),
        pytest.param(
            ('--data.tasks=[{"readout": "pair", "classes": [0, 2]}, {"readout": "kl"}]',), marks=pytest.mark.slow
        ),
        pytest.param(
            ('--data.tasks=[{"readout": "among", "classes": [0, 1, 3]}]', "--model.seeds=[0, 1]"),
            marks=pytest.mark.slow,
        ),
        pytest.param(("--model.target.kind=absolute", "--model.target.value=1e-6"), marks=pytest.mark.slow),
        pytest.param(("--model.target.kind=absolute", "--model.target.value=50"), marks=pytest.mark.slow),
        ("--model.learning.ablation=mean_prefix_patch", "--model.granularity=head"),
    ],
    ids=lambda more: " ".join(word.split(".", 1)[1][:30] for word in more),
)
def test_options_run_and_every_number_is_finite(more: tuple[str, ...], weights: Path, tmp_path: Path) -> None:
    words = (*more, "--data.nonsense=false", *(() if any("tasks" in word for word in more) else (ONE,)))
    fit(tmp_path, weights / "a.safetensors", *words, steps=2)
    found = measured(tmp_path, weights / "a.safetensors", *words, steps=2)
    odd = {measure for (_, measure), record in found.items() if not math.isfinite(record.value)}
    assert odd <= {"density_ratio", "stability", "stability_of_edges", "idle"}
    if "50" in more[-1]:
        assert {record.value for (_, measure), record in found.items() if measure == "nodes"} == {0}


# ----------------------------------------------------------------------------------------- together, alone, continued


def test_circuits_together_are_each_alone(weights: Path, tmp_path: Path) -> None:
    path = weights / "a.safetensors"
    words = ("--model.seeds=[0, 3]", "--model.learning.penalty=1e-4", "--data.nonsense=false")
    fit(tmp_path / "together", path, *words, steps=5)
    together = state(tmp_path / "together")["state_dict"]["learners.tiny.thresholds"].view(4, 2, -1)
    for p, s in ((1, 3), (2, 0)):
        task = f'--data.tasks=[{{"readout": "rest", "classes": [{p}]}}]'
        run = tmp_path / f"alone{p}"
        fit(run, path, *words, f"--model.seeds=[{s}]", task, steps=5)
        alone = state(run)["state_dict"]["learners.tiny.thresholds"][0]
        torch.testing.assert_close(together[p, 0 if s == 0 else 1], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_prices_together_are_each_alone(weights: Path, tmp_path: Path) -> None:
    path = weights / "a.safetensors"
    fit(tmp_path / "together", path, "--data.nonsense=false", steps=5)
    fit(tmp_path / "alone", path, "--data.nonsense=false", ONE, steps=5)
    together, alone = (
        state(tmp_path / run)["state_dict"]["learners.tiny.prices.log_price"] for run in ("together", "alone")
    )
    torch.testing.assert_close(together[1:2], alone, rtol=1e-6, atol=1e-6)


def test_the_same_fit_again_is_the_same(weights: Path, whole: Path, tmp_path: Path) -> None:
    fit(tmp_path, weights / "a.safetensors")
    assert_same(tmp_path, whole)


@pytest.mark.slow  # as the one below, but for an epoch of one step
@pytest.mark.parametrize("step", [1, 3])
def test_killed_and_continued_is_uninterrupted(step: int, weights: Path, whole: Path, tmp_path: Path) -> None:
    def body() -> None:
        fit(tmp_path, weights / "a.safetensors", "--ckpt_path=last", "--checkpoint.every_n_steps=1")

    in_a_process(killed_fit_of(body, step))
    assert state(tmp_path)["global_step"] == step
    assert in_a_process(body) == 0
    assert_same(tmp_path, whole)


MANY = (ONE, "--data.data.n_train=240", "--data.train_images=24", "--model.learning.lr=0.03")  # three steps an epoch


def test_killed_inside_an_epoch_and_continued_is_uninterrupted(weights: Path, tmp_path: Path) -> None:
    """A checkpoint that is written before the last batch of an epoch holds all that its step has done."""

    def body(run: str, *more: str) -> None:
        fit(tmp_path / run, weights / "a.safetensors", "--ckpt_path=last", *MANY, *more, steps=8)

    body("whole")
    in_a_process(killed_fit_of(lambda: body("killed", "--checkpoint.every_n_steps=2"), 5))
    assert state(tmp_path / "killed")["global_step"] == 4  # the first of the second epoch
    body("killed", "--checkpoint.every_n_steps=2")
    body("often", "--checkpoint.every_n_steps=1")
    for run in ("killed", "often"):
        assert_same(tmp_path / run, tmp_path / "whole")
        ours, theirs = (state(tmp_path / one)["optimizer_states"][0]["state"] for one in (run, "whole"))
        assert all(torch.equal(ours[0][name], value) for name, value in theirs[0].items())
    found = state(tmp_path / "whole")
    assert found["state_dict"]["batches"] == 8
    assert found["epoch"] >= 2
    assert (found["state_dict"]["learners.tiny.prices.log_price"].unique()).numel() > 1


@pytest.mark.slow
def test_a_kill_while_gradients_are_accumulated_changes_nothing(weights: Path, tmp_path: Path) -> None:
    def body(run: Path) -> None:
        more = ("--ckpt_path=last", "--checkpoint.every_n_steps=1", "--trainer.accumulate_grad_batches=2", ONE)
        fit(run, weights / "a.safetensors", *more, steps=4)

    assert in_a_process(lambda: body(tmp_path / "whole")) == 0
    in_a_process(killed_fit_of(lambda: body(tmp_path / "killed"), 2))
    assert in_a_process(lambda: body(tmp_path / "killed")) == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_two_ranks_learn_the_circuits_of_one(weights: Path, whole: Path, tmp_path: Path) -> None:
    on_two_ranks(lambda: fit(tmp_path, weights / "a.safetensors", "--trainer.devices=2"))
    assert_close(tmp_path, whole)


def test_two_ranks_have_the_records_of_one(weights: Path, one: Path, records: Records, tmp_path: Path) -> None:
    more = ("--trainer.devices=2", f"--ckpt_path={one / 'checkpoints' / 'last.ckpt'}")
    on_two_ranks(lambda: main(words_of("test", tmp_path, weights / "a.safetensors", *more, ONE)))
    found = records_of(tmp_path)
    assert found.keys() == records.keys()
    for key, record in records.items():
        assert found[key].value == pytest.approx(record.value, rel=1e-6, abs=1e-6, nan_ok=True), key


@pytest.mark.slow
def test_two_ranks_share_an_odd_step(weights: Path, tmp_path: Path) -> None:
    words = (ONE, "--model.learning.batch=5")
    fit(tmp_path / "one", weights / "a.safetensors", *words)
    on_two_ranks(lambda: fit(tmp_path / "two", weights / "a.safetensors", *words, "--trainer.devices=2"))
    assert_close(tmp_path / "two", tmp_path / "one")


def test_a_rehearsal_writes_nothing(weights: Path, tmp_path: Path) -> None:
    fit(tmp_path, weights / "a.safetensors", "--trainer.fast_dev_run=true", ONE)
    assert not list(tmp_path.rglob("*.safetensors"))


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.learning.lr=0"], "model.learning.lr is out of range: 0"),
        (["--model.learning.temperature=-1"], "model.learning.temperature is out of range"),
        (["--model.learning.batch=1"], "model.learning.batch is out of range: 1"),
        (["--model.mean_images=0"], "model.mean_images is out of range"),
        (["--model.learning.penalty=-1"], "model.learning.penalty is out of range: -1"),
        (["--model.granularity=tokens"], "granularity"),
        (["--model.learning.ablation=median"], "ablation"),
        (["--data.train_images=1"], "data.train_images must be at least 2"),
        (['--data.tasks=[{"readout": "rest", "classes": [4]}]'], "class 4 is none of 4"),
        (['--data.tasks=[{"readout": "rest", "classes": [-1]}]'], "class -1 is none of 4"),
        (['--data.tasks=[{"readout": "pair", "classes": [1]}]'], "task pair takes two classes, got [1]"),
        (["--data.data.source.size=32"], "the images are (3, 32, 32)"),
    ],
)
def test_what_cannot_be_learnt_is_named(
    words: list[str], message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, lambda: fit(tmp_path, weights / "a.safetensors", *words))


@pytest.mark.parametrize(
    "words",
    [
        ["--model.seeds=[]"],
        ["--model.seeds=[-1]"],
        ["--model.seeds=[1, 1]"],
        ["--model.random_circuits=19"],
        ["--model.random_circuits=-1"],
        ["--model.target.value=.nan"],
        ["--model.learning.weight_decay=-1"],
    ],
)
def test_a_setting_that_is_none_is_refused(
    words: list[str], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = words[0].split("=")[0].rsplit(".", 1)[1]
    assert name in said(capsys, lambda: fit(tmp_path, weights / "a.safetensors", ONE, *words, steps=1))


def test_random_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "model.models.tiny would have random weights" in said(
        capsys, lambda: fit(tmp_path, {"tiny": backbone(None)})
    )


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_data_without_tasks_are_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in words_of("fit", tmp_path, weights / "a.safetensors", data=()) if "TaskData" not in word]
    scenes = ["--data=SceneData", "--data.source=Rooms", "--data.source.size=16", "--data.label=[shape]"]
    assert "use TaskData, not SceneData" in said(capsys, lambda: main([*words, *scenes]))


def test_augmented_images_are_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = said(
        capsys,
        lambda: fit(
            tmp_path / "run", weights / "two.safetensors", "--data.data.augment=FlipCrop", data=folders(tmp_path)
        ),
    )
    assert "set it to null" in message


def test_class_folders_are_learnt(weights: Path, tmp_path: Path) -> None:
    data, path = (*folders(tmp_path), '--data.tasks=[{"readout": "rest", "classes": [0]}]'), weights / "two.safetensors"
    fit(tmp_path / "run", path, data=data, steps=1)
    found = measured(tmp_path / "run", path, data=data, steps=1)
    assert ("tiny/cat or not/seed 0", "loss_of_nonsense_labels") in found


def test_circuits_of_other_weights_are_refused(
    weights: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"--ckpt_path={whole / 'checkpoints' / 'last.ckpt'}"
    for verb in ("fit", "test"):
        words = words_of(verb, tmp_path, weights / "b.safetensors", more)
        assert "circuits of other weights" in said(capsys, lambda words=words: main(words))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([ONE], "tasks"),
        (["--data.nonsense=false"], "tasks"),
        (["--model.seeds=[1]"], "seeds"),
        pytest.param(["--model.learning.ablation=zero"], "learning", marks=pytest.mark.slow),
        (["--model.learning.lr=0.1"], "learning"),
        (["--model.mean_images=20"], "mean_images"),
        pytest.param(["--model.granularity=head"], "nodes", marks=pytest.mark.slow),
    ],
)
def test_circuits_of_something_else_are_refused_and_the_part_is_named(
    words: list[str], part: str, weights: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"--ckpt_path={whole / 'checkpoints' / 'last.ckpt'}"
    for verb in ("fit", "test"):
        command = words_of(verb, tmp_path, weights / "a.safetensors", more, *words)
        assert f"circuits of other {part}" in said(capsys, lambda command=command: main(command))  # type: ignore[misc]


@pytest.mark.parametrize(
    "word",
    [
        "--data.seed=1",
        "--data.train_images=5",
        pytest.param("--data.data.n_train=110", marks=pytest.mark.slow),
    ],
)
def test_circuits_of_other_images_are_refused(
    word: str, weights: Path, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"--ckpt_path={one / 'checkpoints' / 'last.ckpt'}"
    message = said(capsys, lambda: main(words_of("test", tmp_path, weights / "a.safetensors", more, word, ONE)))
    assert "the checkpoint has circuits of other images" in message


def test_sizes_can_be_chosen_and_reported_on_other_numbers_of_images(weights: Path, one: Path, tmp_path: Path) -> None:
    words = (f"--ckpt_path={one / 'checkpoints' / 'last.ckpt'}", "--data.select_images=5", "--data.report_images=6")
    main(words_of("test", tmp_path, weights / "a.safetensors", *words, ONE))
    assert records_of(tmp_path)[REAL, "nodes"].n == 12


def test_only_circuits_that_reach_the_target_overlap(weights: Path, tmp_path: Path) -> None:
    tasks = '--data.tasks=[{"readout": "rest", "classes": [1]}, {"readout": "rest", "classes": [2]}]'
    words = (tasks, "--model.seeds=[0, 1]", "--data.nonsense=false", "--model.target.kind=absolute")
    fit(tmp_path, weights / "a.safetensors", *words, "--model.target.value=50", steps=1)
    all_of_them = measured(tmp_path, weights / "a.safetensors", *words, "--model.target.value=50", steps=1)
    (tmp_path / "results.json").unlink()
    none = measured(tmp_path, weights / "a.safetensors", *words, "--model.target.value=-1", steps=1)
    for measure in ("stability", "shared_between_tasks"):
        assert any(name == measure for _, name in all_of_them)
        assert not any(name.startswith(measure) for _, name in none)
    assert {record.notes[0] for (_, name), record in none.items() if name == "nodes"} == {"no size reaches the target"}
    assert {r.notes[0] for (_, name), r in all_of_them.items() if name == "nodes"} == {"constants reach the target"}
    assert not any("geometric_mean" in name for found in (none, all_of_them) for _, name in found)


@pytest.mark.slow
def test_means_of_other_weights_have_a_file_of_their_own(weights: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit(tmp_path, weights / f"{name}.safetensors", ONE, steps=1)
        for path in (tmp_path / "checkpoints").iterdir():
            path.unlink()
    assert len(list((tmp_path / "means").iterdir())) == 2


def test_means_of_other_images_in_the_folder_are_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, weights / "a.safetensors", ONE, steps=1)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    assert "means of other" in said(capsys, lambda: fit(tmp_path, weights / "a.safetensors", ONE, "--data.seed=1"))


def test_a_test_without_a_checkpoint_is_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(capsys, lambda: main(words_of("test", tmp_path, weights / "a.safetensors")))
    assert "add `--ckpt_path best`" in message


def test_a_class_without_images_is_named(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folders(tmp_path, {"cat": 12})
    write_folders(tmp_path / "data" / "train", {"dog": 12})
    message = said(capsys, lambda: fit(tmp_path / "run", weights / "two.safetensors", data=data))
    assert "no images" in message or "dog" in message


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_other_verbs_are_refused_in_words(
    verb: str, weights: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"--ckpt_path={whole / 'checkpoints' / 'last.ckpt'}"
    assert verb in said(capsys, lambda: main(words_of(verb, tmp_path, weights / "a.safetensors", more)))
