"""`test` explains images by many methods and models, and says what it cannot do in one message."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from impact_lightning.attribution.lit_attribution import METHODS
from impact_lightning.attribution.measures import CURVE_MEASURES
from impact_lightning.cli import main
from tests.attribution.runs import (
    CHEAP,
    FEW,
    N,
    Records,
    assert_same,
    backbone,
    folders,
    measured,
    number,
    records_of,
    save_model,
    words_of,
)
from tests.said import said
from tests.training.test_resume import on_two_ranks

OF_CURVES = {f"{protocol}_{one.name}" for protocol, measures in CURVE_MEASURES.items() for one in measures}
OF_MAPS = {"map_sparseness", "map_complexity", "artifact_mass", "constant_map", "tied_patches"}
PLACES = {"pointing_game", "energy_in_mask", "rank_accuracy", "mask_iou"}
RANDOMISED = {f"randomised_{name}" for name in PLACES}
LIKENESS = {
    *("likeness_without_head", "likeness_without_blocks_1_and_above", "likeness_without_blocks_0_and_above"),
    *("likeness_without_everything", "likeness_of_another_class"),
}
SENSITIVITY = ("sensitivity_n", "infidelity", "max_sensitivity")  # of the images of checks, as likeness
OF_IMAGES = OF_CURVES | OF_MAPS | PLACES | RANDOMISED


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures have tests of their own, and take most of the time."""
    monkeypatch.setattr("impact_lightning.training.map_files.draw_curves", lambda *_: None)
    monkeypatch.setattr("impact_lightning.training.map_files.draw_gallery", lambda *_: None)


@pytest.fixture(scope="module")
def records(two: Path) -> Records:
    return records_of(two)


@pytest.fixture(scope="module")
def cheap(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of one model, two methods and random maps, and one protocol."""
    run = tmp_path_factory.mktemp("cheap")
    measured(run, weights / "a.safetensors", *CHEAP)
    return run


# ----------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("model", ["a", "b"])
def test_there_is_a_record_of_every_method_and_measure(model: str, records: Records) -> None:
    for method in METHODS:
        wanted = OF_IMAGES | LIKENESS | {*SENSITIVITY} | {f"{name}_due_to_the_model" for name in PLACES}
        wanted |= {f"{name}_above_random" for name in (*OF_IMAGES, *SENSITIVITY)} if method != "random" else set()
        assert {measure for of, measure in records if of == f"{model}/{method}"} == wanted


def test_random_maps_are_the_null(records: Records) -> None:
    for (of, measure), record in records.items():
        model, method = of.split("/")
        if " - " in model or measure.startswith("likeness") or measure.endswith(("_above_random", "_to_the_model")):
            assert record.null is None or " - " in model or record.null.value == 0
        elif method == "random":
            assert record.null is None
        else:
            assert record.null is not None
            assert record.null.how == "random maps"
            assert record.null.value == number(records[f"{model}/random", measure].value)


def test_every_number_lies_in_its_interval_or_says_what_is_left_out(records: Records) -> None:
    for key, record in records.items():
        expected = 3 if key[1].startswith(("likeness", *SENSITIVITY)) else N
        assert (record.n == expected) != any("left out" in note for note in record.notes), key
        assert (record.interval is None) == (record.n < 2), key
        assert math.isfinite(record.value) == (record.n > 0), key
        if record.interval is not None:
            assert record.interval.low - 1e-9 <= record.interval.high


def test_models_differ_by_the_difference_of_their_numbers(records: Records) -> None:
    differences = {key: record for key, record in records.items() if key[0].startswith("b - a/")}
    beyond = {f"{measure}_above_random" for measure in OF_IMAGES | {*SENSITIVITY}}
    assert {measure for _, measure in differences} == OF_IMAGES | LIKENESS | {*SENSITIVITY} | beyond
    whole = [record for record in differences.values() if not record.notes]
    assert len(whole) > 300
    for (of, measure), record in differences.items():
        method = of.split("/")[1]
        ours, theirs = (records[f"{model}/{method}", measure] for model in ("b", "a"))
        assert record.weights == f"{ours.weights} - {theirs.weights}"
        if not record.notes:
            assert record.value == number(ours.value - theirs.value)


def test_records_carry_their_protocol(records: Records) -> None:
    protocol = records["a/rise", "rise_insertion_auc"].protocol
    methods: Any = protocol["methods"]
    assert methods["rise"]["masks"] == 6
    assert methods.keys() == {"rise", "random"}
    other: Any = records["a/gradient_attention", "road_morf"].protocol
    assert other["methods"]["gradient_attention"]["relevance"] == "attention"
    assert other["curves"]["road/morf"]["score"] == "accuracy"
    assert records["a/rise", "map_sparseness"].protocol["curves"] == {}
    curves: Any = protocol["curves"]
    assert curves.keys() == {"rise/insertion", "rise/deletion"}
    assert curves["rise/insertion"]["substrate"]["name"] == "BlurRise"
    assert (protocol["explained"], protocol["split"]) == ("prediction", "test")
    insertion = records["a/rise", "rise_insertion_auc"]
    assert (insertion.version, records["a/rise", "groups_saco_above_random"].version) == (1, 2)


def test_what_is_checked_on_some_images_says_how(records: Records) -> None:
    for (_, measure), record in records.items():
        is_checked = measure.startswith(("likeness", *SENSITIVITY))
        assert record.protocol.get("sanity_images") == (3 if is_checked else None), measure
        assert ("sensitivity" in record.protocol) == measure.startswith(SENSITIVITY), measure
    removed = {"removals": 32, "substrate": {"name": "ZeroNorm"}, "score": "probability"}
    for end in ("", "_above_random"):
        of: Any = {name: records["a/rise", name + end].protocol["sensitivity"] for name in SENSITIVITY}
        assert of["sensitivity_n"] == {"share": 0.25, "correlation": "pearson", **removed}
        assert of["infidelity"] == {"squares": of["infidelity"]["squares"], "optimal_scale": True, **removed}
        assert of["max_sensitivity"] == {"copies": 4, "radius": 0.02}


def test_numbers_of_a_method_compare_whatever_else_was_measured(
    weights: Path, cheap: Path, tmp_path: Path, without_pictures: None
) -> None:
    words = ("--model.methods={raw: RawAttention}", "--model.protocols=[Patch, Groups]", "--model.sanity_images=0")
    found, key = measured(tmp_path, weights / "a.safetensors", *words), ("tiny/raw", "patch_morf_auc")
    assert found[key].difference(records_of(cheap)[key]) == number(0.0)


def test_a_model_alone_has_the_numbers_that_it_has_beside_another(
    weights: Path, tmp_path: Path, cheap: Path, without_pictures: None
) -> None:
    models = {"other": backbone(weights / "b.safetensors"), "tiny": backbone(weights / "a.safetensors")}
    beside = measured(tmp_path, models, *CHEAP)
    assert_same({key: one for key, one in beside.items() if key[0].startswith("tiny/")}, records_of(cheap))


def test_a_model_beside_itself_does_not_differ(weights: Path, tmp_path: Path, without_pictures: None) -> None:
    models = {name: backbone(weights / "a.safetensors") for name in ("one", "again")}
    found = {key: one for key, one in measured(tmp_path, models, *CHEAP).items() if key[0].startswith("again - one/")}
    assert len(found) > 60
    for record in found.values():
        assert record.value == 0
        assert record.interval is None or (record.interval.low, record.interval.high) == (0, 0)


# --------------------------------------------------------------------------------------------------- ranks and batches


def test_two_ranks_are_as_one(weights: Path, cheap: Path, tmp_path: Path) -> None:
    on_two_ranks(lambda: main(words_of(tmp_path, weights / "a.safetensors", *CHEAP, "--trainer.devices=2")))
    assert records_of(tmp_path) == records_of(cheap)
    for path in sorted((cheap / "attribution").rglob("*.*")):
        assert (tmp_path / path.relative_to(cheap)).read_bytes() == path.read_bytes(), path


@pytest.mark.slow
def test_two_ranks_are_as_one_for_all_methods_and_models(weights: Path, two: Path, tmp_path: Path) -> None:
    models = {name: backbone(weights / f"{name}.safetensors") for name in ("a", "b")}
    on_two_ranks(lambda: main(words_of(tmp_path, models, *FEW, "--trainer.devices=2")))
    assert records_of(tmp_path) == records_of(two)
    for path in sorted((two / "attribution").rglob("*.*")):
        assert (tmp_path / path.relative_to(two)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("word", ["--data.eval_batch_size=11", "--model.batch_size=3"])
def test_batches_change_nothing(word: str, weights: Path, cheap: Path, tmp_path: Path, without_pictures: None) -> None:
    assert_same(measured(tmp_path, weights / "a.safetensors", *CHEAP, word), records_of(cheap))


# ---------------------------------------------------------------------------------------------------------- settings


def test_the_label_can_be_explained(weights: Path, cheap: Path, tmp_path: Path, without_pictures: None) -> None:
    found = measured(tmp_path, weights / "a.safetensors", *CHEAP, "--model.explain_label=true")
    former = records_of(cheap)
    key = ("tiny/gradient", "patch_morf_auc")
    assert found[key].protocol["explained"] == "label"
    assert found[key].value != number(former[key].value)
    key = ("tiny/raw", "pointing_game")  # attention is of no class
    assert found[key].value == number(former[key].value)


def test_methods_and_protocols_are_named_and_set(weights: Path, tmp_path: Path, without_pictures: None) -> None:
    methods = (
        "{few: {class_path: RISE, init_args: {masks: 2}}, many: {class_path: RISE, init_args: {masks: 9}}, it: Rollout}"
    )
    patch = "{class_path: Patch, init_args: {step: 4, score: logit, substrate: Mean}}"
    protocols = f"[{patch}, {{class_path: Groups, init_args: {{groups: 4}}}}]"
    words = (f"--model.methods={methods}", f"--model.protocols={protocols}", *FEW)
    found = measured(tmp_path, weights / "a.safetensors", *words)
    assert {of for of, _ in found} == {"tiny/few", "tiny/many", "tiny/it", "tiny/random"}
    assert {measure.split("_")[0] for _, measure in found} >= {"patch", "groups"}
    assert not any(measure.startswith(("rise", "road", "chefer")) for _, measure in found)
    curves: Any = found["tiny/it", "groups_saco"].protocol["curves"]
    assert curves["groups/groups"]["points"] == 4
    curves = found["tiny/it", "patch_morf_auc"].protocol["curves"]
    assert (curves["patch/morf"]["points"], curves["patch/morf"]["score"]) == (5, "logit")
    assert curves["patch/morf"]["substrate"]["name"] == "Mean"


def test_a_split_can_be_smaller_than_gallery_and_checks(weights: Path, tmp_path: Path) -> None:
    words = ("--data.n_test=2", "--model.methods={raw: RawAttention}", "--model.protocols=[Patch]")
    found = measured(tmp_path, weights / "a.safetensors", *words)
    assert {record.n for (_, name), record in found.items() if name.startswith("likeness")} == {2}
    assert len(load_file(tmp_path / "attribution" / "tiny" / "maps.safetensors")) == 2 * 2


def test_nothing_more_than_areas_can_be_wanted(weights: Path, tmp_path: Path) -> None:
    words = ("--model.sanity_images=0", "--model.gallery_images=0", "--model.curve_images=0")
    found = measured(tmp_path, weights / "a.safetensors", *CHEAP[:2], *words)
    assert not any(measure.startswith("likeness") for _, measure in found)
    assert found["tiny/raw", "patch_morf_auc"].n == N


def test_some_batches_are_measured(weights: Path, tmp_path: Path, without_pictures: None) -> None:
    found = measured(tmp_path, weights / "a.safetensors", *CHEAP, "--trainer.limit_test_batches=1")
    assert found["tiny/raw", "map_sparseness"].n == 4


def test_a_rehearsal_writes_nothing(weights: Path, tmp_path: Path) -> None:
    main(words_of(tmp_path, weights / "a.safetensors", *CHEAP, "--trainer.fast_dev_run=true"))
    assert not list(tmp_path.iterdir())


def test_class_folders_have_no_places(weights: Path, tmp_path: Path) -> None:
    data = folders(tmp_path / "data", {"<script>": 3, "dog" * 60: 2})
    found = measured(tmp_path / "run", weights / "two.safetensors", *CHEAP, data=data)
    assert not any("pointing" in measure for _, measure in found)
    assert ("tiny/raw", "likeness_without_everything") in found
    assert (tmp_path / "run" / "attribution" / "tiny" / "gallery.png").stat().st_size > 1000


def test_a_damaged_image_is_left_out_and_noted(weights: Path, tmp_path: Path, without_pictures: None) -> None:
    data = folders(tmp_path / "data", {"cat": 3, "dog": 3})
    (tmp_path / "data" / "test" / "cat" / "2.jpg").write_bytes(b"no picture")
    found = measured(tmp_path / "run", weights / "two.safetensors", *CHEAP, "--data.on_error=skip", data=data)
    record = found["tiny/raw", "patch_morf_auc"]
    assert record.n == 5
    assert "1 damaged" in record.notes[0]


def test_average_pooling_without_a_class_token_is_explained(tmp_path: Path, without_pictures: None) -> None:
    shape: dict[str, Any] = {"class_token": False, "global_pool": "avg"}
    path = save_model(tmp_path / "avg.safetensors", 4, **shape)
    methods = "--model.methods={ours: TransformerAttribution, raw: RawAttention, cam: GradCAM, legrad: LeGrad}"
    found = measured(tmp_path / "run", {"avg": backbone(path, **shape)}, methods, *CHEAP[1:])
    assert all(math.isfinite(found[f"avg/{name}", "patch_area_between"].value) for name in ("ours", "raw", "cam"))


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.methods={own: Nothing}"], "Nothing"),
        (["--model.protocols=[Patch, {class_path: Patch, init_args: {step: 2}}]"], "each may be there once, got patch"),
        (["--model.methods={a/b: RawAttention}"], "model.methods: 'a/b' names tensors"),
        (["--model.methods={fractions: RawAttention}"], "model.methods: 'fractions' names tensors"),
        (["--model.methods={random: RawAttention}"], "model.methods.random: all methods stand beside random maps"),
        (["--model.protocols=[Spiral]"], "Spiral"),
        (["--model.protocols=[{class_path: Patch, init_args: {step: 0}}]"], "step must be 1 or more, got 0"),
        (["--model.protocols=[{class_path: Patch, init_args: {score: beauty}}]"], "score"),
        (["--model.sanity_images=-1"], "model.sanity_images must be at least 0, got -1"),
        (["--model.curve_images=-1"], "model.curve_images must be at least 0, got -1"),
        (["--model.batch_size=0"], "model.batch_size must be at least 1, got 0"),
        (["--data.source.size=32"], "the images are (3, 32, 32) and model.models.tiny takes (3, 16, 16)"),
        (["--data.label=[scale]"], "head.bias (4,) instead of (8,)"),
        (["--trainer.precision=bf16-mixed"], "trainer.precision is bf16-mixed: maps and curves need single"),
        (["--trainer.precision=bf16-true"], "trainer.precision is bf16-true: maps and curves need single"),
        (["--trainer.limit_test_batches=0"], "trainer.limit_test_batches is 0"),
    ],
)
def test_what_cannot_be_measured_is_named(
    words: list[str], message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, lambda: measured(tmp_path, weights / "a.safetensors", *words))
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("part", ["blocks.0.mlp.fc1.weight", "head.weight"])
@pytest.mark.parametrize("methods", ["{ours: TransformerAttribution}", "{centre: Centre}"])
def test_the_model_whose_weights_are_not_finite_is_named(
    part: str, methods: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = load_file(weights / "a.safetensors")
    damaged[part][0, 0] = math.nan
    save_file(damaged, tmp_path / "damaged.safetensors")
    models = {"fine": backbone(weights / "b.safetensors"), "broken": backbone(tmp_path / "damaged.safetensors")}
    words = (f"--model.methods={methods}", *CHEAP[1:])
    message = said(capsys, lambda: measured(tmp_path / "run", models, *words))
    assert message == "error: model.models.broken: the logits of image 0 of the batch are not finite"


def test_the_model_of_an_unsupported_pooling_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape: dict[str, Any] = {"class_token": False, "global_pool": "avgmax"}
    models = {"odd": backbone(save_model(tmp_path / "odd.safetensors", 4, **shape), **shape)}
    message = said(capsys, lambda: measured(tmp_path / "run", models, *CHEAP))
    assert message.startswith("error: model.models.odd: no attribution rule for global_pool 'avgmax'")


def test_gated_units_are_refused_by_transformer_attribution_and_the_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_pictures: None
) -> None:
    name = "vit_giant_patch14_dinov2"
    models = {"gated": backbone(save_model(tmp_path / "gated.safetensors", 4, name=name), name=name)}
    words = ("--model.methods={ours: TransformerAttribution}", *CHEAP[1:])
    message = said(capsys, lambda: measured(tmp_path / "run", models, *words))
    assert message.startswith("error: model.models.gated: blocks.0.mlp is a ")
    assert ("gated/raw", "pointing_game") in measured(tmp_path / "run", models, *CHEAP)


def test_a_model_of_other_classes_is_named(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = {"tiny": {**backbone(weights / "a.safetensors"), "num_classes": 7}}
    assert "model.models.tiny has num_classes 7" in said(capsys, lambda: measured(tmp_path, models))


def test_images_that_nobody_can_read_are_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folders(tmp_path / "data", {"cat": 2, "dog": 2})
    for path in (tmp_path / "data" / "test").rglob("*.jpg"):
        path.write_bytes(b"no picture")
    words = (*CHEAP, "--data.on_error=skip")
    message = said(capsys, lambda: measured(tmp_path / "run", weights / "two.safetensors", *words, data=data))
    assert message == "error: none of the test images can be read; mend the data"


def test_it_trains_nothing(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(tmp_path, weights / "a.safetensors", *CHEAP, "--trainer.max_epochs=1", verb="fit")
    assert said(capsys, lambda: main(words)) == "error: LitAttribution trains nothing: run `test`"


def test_a_checkpoint_is_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 0}, path)
    words = words_of(tmp_path, weights / "a.safetensors", *CHEAP, f"--ckpt_path={path}")
    assert "LitAttribution takes no --ckpt_path" in said(capsys, lambda: main(words))
