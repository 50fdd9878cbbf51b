"""`fit` learns circuits and `test` validates them, alike however they are run, and say what they cannot do."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from impact_lightning.backbones import Backbone
from impact_lightning.cli import main
from impact_lightning.results import Record, read_results
from tests.data.pictures import write_folders
from tests.training.test_resume import in_a_process, killed_fit_of, on_two_ranks

SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
SCENES = (
    *("--data.data=SceneData", "--data.data.source=Rooms", "--data.data.source.size=16", "--data.data.label=[shape]"),
    *("--data.data.n_train=120", "--data.data.n_val=1", "--data.data.n_test=60", "--data.data.eval_batch_size=8"),
    *("--data.train_images=6", "--data.select_images=4", "--data.report_images=4"),
)
QUIET = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false")
FEW = ("--model.batch=4", "--model.mean_images=24", "--model.random_circuits=3", "--trainer.log_every_n_steps=1")
ONE = '--data.tasks=[{"readout": "rest", "classes": [1]}]'
STEPS = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models of four classes, and one of two."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (name, n_classes) in enumerate({"a": 4, "b": 4, "two": 2}.items()):
        torch.manual_seed(seed)
        model = Backbone("vit_tiny_patch16_224", model_args={**SHAPE}, num_classes=n_classes).build()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return folder


def words_of(
    verb: str, run: Path, path: Path | None, *more: str, data: tuple[str, ...] = SCENES, steps: int = STEPS
) -> list[str]:
    """Return the words of a command line."""
    shape = ", ".join(f"{key}: {value}" for key, value in SHAPE.items())
    model = ["--model=LitCircuit", "--model.backbone.name=vit_tiny_patch16_224"]
    model += [f"--model.backbone.model_args={{{shape}}}", *FEW]
    model += [f"--model.backbone.weights={path}"] if path else []
    limits = [f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1"]
    return [verb, f"--dir={run}", *model, "--data=TaskData", *data, *QUIET, *limits, *more]


def fit(run: Path, path: Path | None, *more: str, **others: Any) -> None:
    main(words_of("fit", run, path, *more, **others))


def measured(run: Path, path: Path | None, *more: str, **others: Any) -> dict[tuple[str, str], Record]:
    main(words_of("test", run, path, "--ckpt_path=last", *more, **others))
    return {(record.of, record.measure): record for record in read_results(run / "results.json")}


def state(run: Path, name: str = "last") -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def assert_same(run: Path, reference: Path) -> None:
    """Compare what was learnt, bit for bit."""
    ours, theirs = state(run), state(reference)
    assert ours["global_step"] == theirs["global_step"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    different = [k for k, value in ours["state_dict"].items() if not torch.equal(value, theirs["state_dict"][k])]
    assert not different


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
def records(weights: Path, one: Path) -> dict[tuple[str, str], Record]:
    return measured(one, weights / "a.safetensors", ONE)


# ---------------------------------------------------------------------------------------------------- what is learnt


def test_only_circuits_are_in_a_checkpoint(whole: Path) -> None:
    content = state(whole)
    assert content["state_dict"].keys() == {"batches", "thresholds", "prices.log_price", "prices.mean_loss"}
    thresholds = content["state_dict"]["thresholds"]
    assert thresholds.shape == (8, 11 * 12)  # four classes and their controls; 8 sites of 12 channels, one of 48
    assert thresholds.abs().max() <= 1
    assert content["circuits"]["tasks"][5] == ["rest", [1], True]


def test_there_is_a_record_of_every_circuit_and_measure(records: dict[tuple[str, str], Record], weights: Path) -> None:
    tasks = {of for of, _ in records} - {"all tasks"}
    assert len(tasks) == 2
    assert sum("(nonsense)" in task for task in tasks) == 1
    measures = {measure for of, measure in records if of != "all tasks"}
    assert measures >= {"nodes", "live_nodes", "edges", "loss_alone", "loss_without", "p_sufficient", "ncq", "cpr"}
    assert len(records) == 2 * len(measures) + 2
    for (of, measure), record in records.items():
        if of != "all tasks":
            assert record.n == 8
            assert len(record.notes) == 1
            assert math.isfinite(record.value) or measure == "density_ratio", of  # undefined without slots


def test_records_carry_their_protocol(records: dict[tuple[str, str], Record]) -> None:
    protocol = next(iter(records.values())).protocol
    assert protocol["ablation"] == "mean"
    assert protocol["mean_images"] == 24
    assert protocol["target"] == {"kind": "relative", "value": 0.1}
    assert (protocol["train_images"], protocol["select_images"], protocol["report_images"]) == (6, 4, 4)
    assert protocol["task_seed"] == 0


@pytest.mark.parametrize("name", ["batch", "lr", "weight_decay", "temperature"])
def test_records_carry_how_circuits_were_learnt(name: str, records: dict[tuple[str, str], Record]) -> None:
    assert name in next(iter(records.values())).protocol


def test_sizes_lie_within_the_model(records: dict[tuple[str, str], Record]) -> None:
    for (_, measure), record in records.items():
        if measure in ("nodes", "live_nodes"):
            assert 0 <= record.value <= 132
        if measure.startswith("p_"):
            assert 1 / 4 <= record.value <= 1
    for of in {of for of, measure in records if measure == "live_nodes"}:
        assert records[of, "live_nodes"].value <= records[of, "nodes"].value


@pytest.mark.parametrize(
    "more",
    [
        ("--model.granularity=head", "--model.tie_qk=true"),
        pytest.param(("--model.ablation=mean_position",), marks=pytest.mark.slow),
        pytest.param(("--model.ablation=zero", "--model.penalty=1e-3"), marks=pytest.mark.slow),
        pytest.param(
            ('--data.tasks=[{"readout": "pair", "classes": [0, 2]}, {"readout": "kl"}]',), marks=pytest.mark.slow
        ),
        pytest.param(
            ('--data.tasks=[{"readout": "among", "classes": [0, 1, 3]}]', "--model.seeds=[0, 1]"),
            marks=pytest.mark.slow,
        ),
        pytest.param(("--model.target.kind=absolute", "--model.target.value=1e-6"), marks=pytest.mark.slow),
        ("--model.target.kind=absolute", "--model.target.value=50"),
    ],
    ids=lambda more: " ".join(word.split(".", 1)[1][:30] for word in more),
)
def test_options_run_and_every_number_is_finite(more: tuple[str, ...], weights: Path, tmp_path: Path) -> None:
    words = (*more, "--data.nonsense=false", *(() if any("tasks" in word for word in more) else (ONE,)))
    fit(tmp_path, weights / "a.safetensors", *words, steps=2)
    found = measured(tmp_path, weights / "a.safetensors", *words, steps=2)
    odd = {measure for (_, measure), record in found.items() if not math.isfinite(record.value)}
    assert odd <= {"density_ratio", "stability", "nodes_geometric_mean", "edges_over_density_geometric_mean"}
    if "50" in more[-1]:
        assert {record.value for (_, measure), record in found.items() if measure == "nodes"} == {0}


# ----------------------------------------------------------------------------------------- together, alone, continued


def test_circuits_together_are_each_alone(weights: Path, tmp_path: Path) -> None:
    path = weights / "a.safetensors"
    words = ("--model.seeds=[0, 3]", "--model.penalty=1e-4", "--data.nonsense=false")
    fit(tmp_path / "together", path, *words, steps=5)
    together = state(tmp_path / "together")["state_dict"]["thresholds"].view(4, 2, -1)
    for p, s in ((1, 3), (2, 0)):
        task = f'--data.tasks=[{{"readout": "rest", "classes": [{p}]}}]'
        run = tmp_path / f"alone{p}"
        fit(run, path, *words, f"--model.seeds=[{s}]", task, steps=5)
        alone = state(run)["state_dict"]["thresholds"][0]
        torch.testing.assert_close(together[p, 0 if s == 0 else 1], alone, rtol=1e-6, atol=1e-6)


def test_prices_together_are_each_alone(weights: Path, tmp_path: Path) -> None:
    path = weights / "a.safetensors"
    fit(tmp_path / "together", path, "--data.nonsense=false", steps=5)
    fit(tmp_path / "alone", path, "--data.nonsense=false", ONE, steps=5)
    together, alone = (state(tmp_path / run)["state_dict"]["prices.log_price"] for run in ("together", "alone"))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-6, atol=1e-6)


def test_the_same_fit_again_is_the_same(weights: Path, whole: Path, tmp_path: Path) -> None:
    fit(tmp_path, weights / "a.safetensors")
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_killed_and_continued_is_uninterrupted(step: int, weights: Path, whole: Path, tmp_path: Path) -> None:
    def body() -> None:
        fit(tmp_path, weights / "a.safetensors", "--ckpt_path=last", "--checkpoint.every_n_steps=1")

    in_a_process(killed_fit_of(body, step))
    assert state(tmp_path)["global_step"] == step
    assert in_a_process(body) == 0
    assert_same(tmp_path, whole)


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
    for name, value in state(whole)["state_dict"].items():
        torch.testing.assert_close(state(tmp_path)["state_dict"][name], value, rtol=1e-6, atol=1e-6)


def test_two_ranks_have_the_records_of_one(
    weights: Path, one: Path, records: dict[tuple[str, str], Record], tmp_path: Path
) -> None:
    more = ("--trainer.devices=2", f"--ckpt_path={one / 'checkpoints' / 'last.ckpt'}")
    on_two_ranks(lambda: main(words_of("test", tmp_path, weights / "a.safetensors", *more, ONE)))
    found = {(record.of, record.measure): record for record in read_results(tmp_path / "results.json")}
    assert found.keys() == records.keys()
    for key, record in records.items():
        assert found[key].value == pytest.approx(record.value, rel=1e-6, abs=1e-6, nan_ok=True), key


@pytest.mark.slow
def test_two_ranks_share_an_odd_step(weights: Path, tmp_path: Path) -> None:
    words = (ONE, "--model.batch=5")
    fit(tmp_path / "one", weights / "a.safetensors", *words)
    on_two_ranks(lambda: fit(tmp_path / "two", weights / "a.safetensors", *words, "--trainer.devices=2"))
    for name, value in state(tmp_path / "one")["state_dict"].items():
        torch.testing.assert_close(state(tmp_path / "two")["state_dict"][name], value, rtol=1e-6, atol=1e-6)


def test_a_rehearsal_writes_nothing(weights: Path, tmp_path: Path) -> None:
    fit(tmp_path, weights / "a.safetensors", "--trainer.fast_dev_run=true", ONE)
    assert not list(tmp_path.rglob("*.safetensors"))


# -------------------------------------------------------------------------------------------------------- mistakes


def said(capsys: pytest.CaptureFixture[str], body: Callable[[], None]) -> str:
    """Return the one message with which a command ends in exit code 2."""
    with pytest.raises(SystemExit) as ending:
        body()
    assert ending.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.lr=0"], "model.lr is out of range: 0"),
        (["--model.temperature=-1"], "model.temperature is out of range"),
        (["--model.batch=1"], "model.batch is out of range: 1"),
        (["--model.mean_images=0"], "model.mean_images is out of range"),
        (["--model.penalty=-1"], "model.penalty must be a price"),
        (["--model.granularity=tokens"], "granularity"),
        (["--model.ablation=median"], "ablation"),
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
        ["--model.random_circuits=0"],
        ["--model.random_circuits=-1"],
        ["--model.target.value=.nan"],
        ["--model.weight_decay=-1"],
    ],
)
def test_a_setting_that_is_none_is_refused(
    words: list[str], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = words[0].split("=")[0].rsplit(".", 1)[1]
    assert name in said(capsys, lambda: fit(tmp_path, weights / "a.safetensors", ONE, *words, steps=1))


def test_random_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "model.backbone would have random weights" in said(capsys, lambda: fit(tmp_path, None))


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


def folders(root: Path, counts: dict[str, int] | None = None) -> tuple[str, ...]:
    for split in ("train", "test"):
        write_folders(root / "data" / split, counts or {"cat": 12, "dog": 12})
    return (
        *("--data.data=ImageData", f"--data.data.root={root / 'data'}", "--data.data.preprocess.size=16"),
        *("--data.train_images=4", "--data.select_images=2", "--data.report_images=4"),
    )


def test_class_folders_are_learnt(weights: Path, tmp_path: Path) -> None:
    data, path = (*folders(tmp_path), '--data.tasks=[{"readout": "rest", "classes": [0]}]'), weights / "two.safetensors"
    fit(tmp_path / "run", path, data=data, steps=1)
    found = measured(tmp_path / "run", path, data=data, steps=1)
    assert {of for of, _ in found} >= {"cat or not/seed 0", "cat or not (nonsense)/seed 0"}


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
        (["--model.ablation=zero"], "ablation"),
        (["--model.granularity=head"], "nodes"),
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
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("--data.train_images=5", "--data.data.n_train=110")),
    ],
)
def test_circuits_of_other_images_are_refused(
    word: str, weights: Path, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = f"--ckpt_path={one / 'checkpoints' / 'last.ckpt'}"
    message = said(capsys, lambda: main(words_of("test", tmp_path, weights / "a.safetensors", more, word, ONE)))
    assert "the checkpoint has circuits of other" in message


def test_means_of_other_weights_in_the_folder_are_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, weights / "a.safetensors", ONE, steps=1)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    message = said(capsys, lambda: fit(tmp_path, weights / "b.safetensors", ONE, steps=1))
    assert f"{tmp_path}/means.safetensors holds means of other weights" in message


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
