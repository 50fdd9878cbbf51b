"""Several models in one fit: each learns what it learns alone, and all are compared at one loss."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from impact_lightning.cli import main
from impact_lightning.results import Record
from tests.circuits.runs import (
    DEEP,
    ONE,
    SHAPE,
    Records,
    assert_close,
    assert_same,
    backbone,
    fit,
    measured,
    records_of,
    state,
    words_of,
)
from tests.said import said
from tests.training.test_resume import in_a_process, killed_fit_of, on_two_ranks

SAME_LOSS = ("--model.target.kind=absolute", "--model.target.value=0.8")  # whatever stands beside a model
TWO = ('--data.tasks=[{"readout": "rest", "classes": [1]}, {"readout": "pair", "classes": [0, 2]}]',)


@pytest.fixture(scope="module")
def models(weights: Path) -> dict[str, Any]:
    """Return two models of unlike width and depth."""
    return {"wide": backbone(weights / "a.safetensors"), "deep": backbone(weights / "deep.safetensors", DEEP)}


def learnt(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return the state of each model's circuits."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state(run)["state_dict"].items():
        if key.startswith("learners."):
            _, name, rest = key.split(".", 2)
            found.setdefault(name, {})[rest] = value
    return found


@pytest.fixture(scope="module")
def together(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fit of both and of their controls."""
    run = tmp_path_factory.mktemp("together")
    fit(run, models, *TWO, *SAME_LOSS, "--model.permuted_weights=true")
    return run


@pytest.fixture(scope="module")
def records(together: Path, models: dict[str, Any]) -> Records:
    return measured(together, models, *TWO, *SAME_LOSS, "--model.permuted_weights=true")


# ---------------------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("name", ["wide", "deep"])
def test_models_together_are_each_alone(name: str, models: dict[str, Any], together: Path, tmp_path: Path) -> None:
    fit(tmp_path, {name: models[name]}, *TWO, *SAME_LOSS)
    found, (alone,) = learnt(together)[name], learnt(tmp_path).values()
    assert found.keys() == alone.keys()
    for key, value in alone.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6, equal_nan=True, msg=key)


def test_every_model_has_a_control_of_permuted_weights(together: Path) -> None:
    found = learnt(together)
    assert found.keys() == {"wide", "wide with permuted weights", "deep", "deep with permuted weights"}
    for name, n in (("wide", 11 * 12), ("deep", 2 * 11 * 8)):
        assert found[name]["thresholds"].shape == (4, n)
        assert found[f"{name} with permuted weights"]["thresholds"].shape == (2, n)  # no nonsense
    assert len(list((together / "means").iterdir())) == 4


TO_TURN_OFF = ("--model.learning.lr=0.01", "--model.learning.penalty=0.01", ONE)  # nodes go off, constants are learnt


@pytest.mark.parametrize("ablation", ["learned", pytest.param("resample", marks=pytest.mark.slow)])
def test_what_replaces_nodes_can_be_learnt_or_drawn(ablation: str, weights: Path, tmp_path: Path) -> None:
    path, words = weights / "a.safetensors", (f"--model.learning.ablation={ablation}", *TO_TURN_OFF)
    fit(tmp_path / "run", path, *words, steps=30)
    (found,) = learnt(tmp_path / "run").values()
    assert 0.1 < (found["thresholds"] < 0).double().mean() < 1
    assert ("shifts" in found) == (ablation == "learned")
    if ablation == "learned":
        assert found["shifts"].shape == (2, 11 * 12)
        assert found["shifts"].abs().max() > 1e-3
    assert_known(measured(tmp_path / "run", path, *words, steps=30))
    on_two_ranks(lambda: fit(tmp_path / "two", path, *words, "--trainer.devices=2", steps=30))
    assert_close(tmp_path / "two", tmp_path / "run")


@pytest.mark.slow
def test_learnt_constants_are_killed_and_continued(weights: Path, tmp_path: Path) -> None:
    def body(run: Path) -> None:
        more = ("--ckpt_path=last", "--checkpoint.every_n_steps=1", "--model.learning.ablation=learned", *TO_TURN_OFF)
        fit(run, weights / "a.safetensors", *more, steps=25)

    assert in_a_process(lambda: body(tmp_path / "whole")) == 0
    in_a_process(killed_fit_of(lambda: body(tmp_path / "killed"), 20))
    assert state(tmp_path / "killed")["global_step"] == 20
    assert in_a_process(lambda: body(tmp_path / "killed")) == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")
    (found,) = learnt(tmp_path / "whole").values()
    assert found["shifts"].any()


def test_gates_leave_nothing_behind(together: Path) -> None:
    """Each gate holds the compiler: they have to be taken out in the order in which none takes it from another."""
    assert together.exists()
    compiled = torch.compile(lambda x: x + 1, backend=_counting)
    compiled(torch.ones(2))
    assert COMPILED


COMPILED: list[int] = []


def _counting(graph: Any, inputs: Any) -> Any:
    COMPILED.append(len(inputs))
    return graph.forward


# ----------------------------------------------------------------------------------------------------------- records

MAY_BE_NAN = {"density_ratio", "switches_of_nonsense_labels", "switches_of_permuted_weights", "idle"}


def assert_known(records: Records) -> None:
    """Every number is finite, or undefined for a reason that is told."""
    odd = {measure for (_, measure), record in records.items() if not math.isfinite(record.value)}
    assert odd <= MAY_BE_NAN
    for (of, measure), record in records.items():
        if record.interval is not None:
            assert record.interval.low <= record.value <= record.interval.high, (of, measure)


CIRCUITS = [f"{model}/{task}/seed 0" for model in ("wide", "deep") for task in ("cylinder or not", "cube or sphere")]


def test_every_model_is_examined(records: Records) -> None:
    assert_known(records)
    names = {of for of, _ in records}
    assert names <= {"wide", "deep", "deep / wide", *CIRCUITS, *(of.rsplit("/", 1)[0] for of in CIRCUITS)}
    for of in CIRCUITS:
        assert (of, "loss_of_permuted_weights") in records
        assert (of, "loss_of_nonsense_labels") in records


def test_models_are_compared_with_the_first(records: Records) -> None:
    ratios = {measure for of, measure in records if of == "deep / wide"}
    assert ratios <= {f"{size}_ratio" for size in ("nodes", "live_nodes", "edges", "edges_over_density")}
    assert not any(of == "wide / deep" for of, _ in records)
    for measure in ratios:
        size = measure.removesuffix("_ratio")
        ours, theirs = (records[name, f"{size}_geometric_mean"] for name in ("deep", "wide"))
        if ours.n == theirs.n == records["deep / wide", measure].n:
            assert records["deep / wide", measure].value == pytest.approx(ours.value / theirs.value)


def test_records_say_which_models_have_part_in_the_target(records: Records, weights: Path) -> None:
    for record in records.values():
        assert record.protocol["target_of"] == "the largest of the models"
        models = record.protocol["models"]
        assert isinstance(models, list)
        assert [str(one).split()[0] for one in models] == ["wide", "deep"]
    fingerprints = {of: weights_of(of, records).weights for of in ("wide", "deep")}
    assert len(set(fingerprints.values())) == 2


def weights_of(model: str, records: Records) -> Record:
    return next(record for (of, _), record in records.items() if of.startswith(f"{model}/"))


def test_records_of_a_model_name_its_own_nodes(records: Records) -> None:
    assert "of 1 blocks" in str(weights_of("wide", records).protocol["nodes"])
    assert "of 2 blocks" in str(weights_of("deep", records).protocol["nodes"])


@pytest.mark.slow
def test_two_ranks_examine_several_models_as_one(
    models: dict[str, Any], together: Path, records: Records, tmp_path: Path
) -> None:
    words = (*TWO, *SAME_LOSS, "--model.permuted_weights=true", "--trainer.devices=2")
    checkpoint = f"--ckpt_path={together / 'checkpoints' / 'last.ckpt'}"
    on_two_ranks(lambda: main(words_of("test", tmp_path, models, *words, checkpoint)))
    found = records_of(tmp_path)
    assert found.keys() == records.keys()
    for key, record in records.items():
        assert found[key].value == pytest.approx(record.value, rel=1e-6, abs=1e-6, nan_ok=True), key


# ------------------------------------------------------------------------------------------- weights that are alike


def test_models_of_the_same_weights_and_other_heads_have_means_of_their_own(weights: Path, tmp_path: Path) -> None:
    path = weights / "a.safetensors"
    models = {"two": backbone(path), "four": backbone(path, {**SHAPE, "num_heads": 4})}
    fit(tmp_path, models, ONE, *SAME_LOSS, steps=1)
    sums = [load_file(one)["sums"] for one in (tmp_path / "means").iterdir()]
    assert len(sums) == 2
    assert not torch.allclose(sums[0], sums[1])


@pytest.mark.slow
def test_a_model_beside_itself_is_as_large(weights: Path, tmp_path: Path) -> None:
    models = {name: backbone(weights / "a.safetensors") for name in ("one", "again")}
    words = ('--data.tasks=[{"readout": "kl"}]', "--data.nonsense=false")
    fit(tmp_path, models, *words)
    first, second = learnt(tmp_path).values()
    assert all(torch.equal(value, second[key]) or value.isnan().all() for key, value in first.items())
    found = measured(tmp_path, models, *words)
    assert found["again / one", "nodes_ratio"].value == 1
    assert found["again / one", "edges_ratio"].value == 1


# ---------------------------------------------------------------------------------------------------------- mistakes


def test_no_models_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "model.models is empty" in said(capsys, lambda: fit(tmp_path, {}))


def test_the_model_without_weights_is_named(
    models: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(capsys, lambda: fit(tmp_path, {**models, "bare": backbone(None)}))
    assert "model.models.bare would have random weights" in message


def test_a_model_of_other_classes_is_named(
    models: dict[str, Any], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(capsys, lambda: fit(tmp_path, {**models, "pair": backbone(weights / "two.safetensors")}))
    assert "two.safetensors" in message
    assert "head" in message


def test_a_model_of_another_image_size_is_named(
    models: dict[str, Any], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = {**load_file(weights / "a.safetensors")}
    large["pos_embed"] = torch.zeros(1, 17, 12)
    save_file(large, tmp_path / "large.safetensors")
    added = {**models, "large": backbone(tmp_path / "large.safetensors", {**SHAPE, "img_size": 32})}
    message = said(capsys, lambda: fit(tmp_path / "run", added))
    assert "takes (3, 32, 32)" in message
    assert "large" in message


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("half", "model", "keys", "train")]


@pytest.mark.parametrize("name", ["wide.2", *SLOW])
def test_a_model_can_have_the_name_of_anything_else(name: str, weights: Path, tmp_path: Path) -> None:
    models = {"first": backbone(weights / "b.safetensors"), name: backbone(weights / "a.safetensors")}
    words = (ONE, "--data.nonsense=false")
    fit(tmp_path, models, *words, steps=1)
    found = measured(tmp_path, models, *words, steps=1)
    assert (f"{name}/cylinder or not/seed 0", "nodes") in found
    assert len(list((tmp_path / "circuits").rglob("masks.safetensors"))) == 2


@pytest.mark.parametrize("name", ["", "a/b", "..", "a·b", "a with permuted weights", "模型"])
def test_a_name_that_is_none_of_a_file_is_refused(
    name: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"a": backbone(weights / "b.safetensors"), name: backbone(weights / "a.safetensors")}
    assert f"model.models: {name!r} names files" in said(capsys, lambda: fit(tmp_path, models, ONE))


def test_circuits_of_other_models_are_refused(
    models: dict[str, Any], together: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = (*TWO, *SAME_LOSS, "--model.permuted_weights=true", f"--ckpt_path={together / 'checkpoints' / 'last.ckpt'}")
    others: list[dict[str, Any]] = [
        {"wide": models["wide"]},
        {"deep": models["deep"], "wide": models["deep"] | {}},
        {"wide": models["wide"], "slim": models["deep"]},
    ]
    for other in others:
        message = said(capsys, lambda other=other: main(words_of("test", tmp_path, other, *more)))  # type: ignore[misc]
        assert "circuits of other weights" in message


@pytest.mark.parametrize("part", ["blocks.0.mlp.fc1.weight", "head.weight"])
def test_weights_that_are_not_finite_are_named(
    part: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = load_file(weights / "a.safetensors")
    damaged[part][0, 0] = math.nan
    save_file(damaged, tmp_path / "damaged.safetensors")
    message = said(capsys, lambda: fit(tmp_path / "run", {"damaged": backbone(tmp_path / "damaged.safetensors")}, ONE))
    assert "model.models.damaged: " in message or "error: damaged: " in message  # the model, and not just its file
    assert "not finite" in message
    assert "lower" not in message


@pytest.mark.slow
def test_a_contrast_is_for_one_class_against_others(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word = '--data.tasks=[{"readout": "pair", "classes": [0, 1], "against": [2]}]'
    assert "`against` is for" in said(capsys, lambda: fit(tmp_path, weights / "a.safetensors", word))
    word = '--data.tasks=[{"readout": "rest", "classes": [0], "against": [9]}]'
    assert "class 9 is none of 4" in said(capsys, lambda: fit(tmp_path, weights / "a.safetensors", word))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ('[{"readout": "rest", "classes": [1], "nonsense": true}]', "nonsense"),
        ('[{"readout": "rest", "classes": [1]}, {"readout": "rest", "classes": [1]}]', "twice"),
        ('[{"readout": "kl"}]', "permuted_weights"),
    ],
)
def test_tasks_that_say_nothing_are_refused(
    tasks: str, message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"--data.tasks={tasks}", "--model.permuted_weights=true")
    assert message in said(capsys, lambda: fit(tmp_path, weights / "a.safetensors", *words))
