"""The plan: order, names, and what a change makes anew."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from impact_lightning.suite.levels import Level, Levels
from impact_lightning.suite.plan import Plan, image_configs, with_data
from impact_lightning.suite.sources import Given, Pruned, Trained, Training, Tuned
from impact_lightning.types import UserError
from tests.suite.plans import MODELS, SAE, SHARED, plan


def changed(one: Plan, other: Plan) -> set[str]:
    """Return the units that are done again."""
    return {name for name in other.works if one.fingerprints.get(name) != other.fingerprints[name]}


def test_every_unit_comes_after_those_that_it_reads_from() -> None:
    made = plan(seeds=[0, 1])
    names = list(made.works)
    assert all(names.index(other) < names.index(name) for name, work in made.works.items() for other in work.after)


def test_the_units_of_two_models() -> None:
    assert list(plan().works) == [
        *("dense/fit", "dense/test", "wanda70/prune", "wanda70/finetune", "wanda70/test", "neurons", "circuits/fit"),
        *("circuits/test", "attribution", "sae/dense/fit", "sae/dense/test", "sae/wanda70/fit", "sae/wanda70/test"),
    ]


def test_the_reference_is_the_first_model_of_every_level() -> None:
    models = {"a": Trained(), "b": Trained(Training(model={"lr": 1.0}))}
    for reference in models:
        work = plan(models, reference=reference).works["neurons"]
        assert next(iter(work.config["model"]["init_args"]["models"])) == reference


def test_a_reference_that_is_made_from_another_model() -> None:
    made = plan(reference="wanda70")
    assert [one.name for one in made.members] == ["wanda70", "dense"]
    assert {one.reference for one in made.members} == {"wanda70"}


def test_each_seed_is_compared_with_its_own_reference() -> None:
    made = plan(seeds=[3, 5])
    assert [(one.name, one.seed, one.reference) for one in made.members] == [
        *(("dense", 3, "dense"), ("wanda70", 3, "dense")),
        *(("dense.5", 5, "dense.5"), ("wanda70.5", 5, "dense.5")),
    ]
    assert made.works["wanda70.5/prune"].after == ("dense.5/fit",)
    assert made.works["dense.5/fit"].config["seed_everything"] == 5
    assert made.works["dense.5/fit"].config["data"] == made.works["dense/fit"].config["data"]  # the same test images


def test_apart_measures_each_model_beside_the_reference() -> None:
    models = {**MODELS, "other": Trained()}
    made = plan(models, Levels(neurons=Level(apart=True), sae=None, circuits=None, attribution=None))
    pairs = {name: work.models for name, work in made.works.items() if work.level == "neurons"}
    assert pairs == {"neurons/wanda70": ("dense", "wanda70"), "neurons/other": ("dense", "other")}


def test_stored_activations_are_extracted_first() -> None:
    level = replace(SAE, extract={"dtype": "float32"}, seeds=[0, 1])
    works = plan(levels=Levels(neurons=None, sae=level, circuits=None, attribution=None)).works
    assert works["sae/dense.s1/fit"].after == ("sae/dense/extract-train", "sae/dense/extract-val")
    assert works["sae/dense/extract-val"].config["split"] == "val"
    assert "CachedActivations" in works["sae/dense.s1/fit"].config["data"]["class_path"]
    assert "LiveActivations" in works["sae/dense.s1/test"].config["data"]["class_path"]  # splicing needs the images
    assert works["sae/dense.s1/fit"].config["model"]["init_args"]["seeds"] == [1]


def test_a_change_makes_what_depends_on_it_anew_and_nothing_else() -> None:
    base = plan()
    assert not changed(base, plan())
    slower = {**MODELS, "dense": Trained(Training(model={"lr": 2e-3}, trainer={"max_epochs": 2}))}
    assert changed(base, plan(slower)) == set(base.works)
    sparser = {**MODELS, "wanda70": replace(MODELS["wanda70"], sparsity=0.8)}  # type: ignore[type-var]
    own = {name for name, work in base.works.items() if "wanda70" in work.models}
    assert changed(base, plan(sparser)) == own
    more = {**MODELS, "other": Trained()}
    together = {"neurons", "circuits/fit", "circuits/test", "attribution"}
    assert changed(base, plan(more)) == together | {"other/fit", "other/test", "sae/other/fit", "sae/other/test"}
    levels = Levels(sae=SAE, attribution=Level(model={"sanity_images": 4}))
    assert changed(base, plan(levels=levels)) == {"attribution"}


def test_another_reference_makes_anew_what_compares_models() -> None:
    models = {"a": Trained(), "b": Trained(Training(model={"lr": 1.0}))}
    one, other = (plan(models, reference=reference) for reference in models)
    assert changed(one, other) == {"neurons", "circuits/fit", "circuits/test", "attribution"}


def test_a_trained_model_has_its_own_head(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"w")
    given = Given(weights, backbone={"new_head": True})
    models = {"dense": given, "tuned": Tuned("dense", Training()), "cut": Pruned("tuned", 0.5, finetune=Training())}
    made = {one.name: one.backbone for one in plan(models).members}
    assert made["dense"]["new_head"]
    assert [key for name in ("tuned", "cut") for key in made[name] if key in ("new_head", "head", "pretrained")] == []
    probe = replace(SHARED, backbone={**SHARED.backbone, "pretrained": True, "head": "probe.ckpt"})
    works, backbone = Trained().works("m", probe, 0, None)
    assert works[0].config["model"]["init_args"]["backbone"]["pretrained"]
    assert set(backbone) == {*SHARED.backbone, "weights"}


def test_other_images_make_everything_anew_that_reads_them() -> None:
    base, few = plan(), Levels(sae=SAE, neurons=Level(images={"n": 2}))
    assert changed(base, plan(levels=few)) == {"neurons"}
    keys = {key for work in base.works.values() for key in image_configs(work.config)}
    assert len(keys) == 1
    assert changed(with_data(base, dict.fromkeys(keys, "a")), with_data(base, dict.fromkeys(keys, "b"))) == set(
        base.works
    )


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"1")
    models = {"dense": Given(file)}
    first = plan(models)
    (tmp_path / "moved.safetensors").write_bytes(b"1")
    assert not changed(first, plan({"dense": Given(tmp_path / "moved.safetensors")}))
    assert not changed(first, plan(models))
    file.write_bytes(b"2")
    assert changed(first, plan(models)) == set(first.works)


def test_another_configuration_has_another_folder() -> None:
    base, other = plan(), plan(shared=replace(SHARED, trainer={"precision": "bf16-mixed"}))
    assert base.folder("dense/fit") != other.folder("dense/fit")
    assert base.folder("dense/fit").startswith("units/dense/fit-")


@pytest.mark.parametrize(
    ("models", "changes", "message"),
    [
        ({"a/b": Trained()}, {"reference": "a/b"}, "a/b"),
        ({"circuits": Trained()}, {"reference": "circuits"}, "levels have that name"),
        ({"x" * 99: Trained()}, {"reference": "x" * 99}, "longer than"),
        (MODELS, {"reference": "none"}, "reference 'none'.*dense"),
        (MODELS, {"seeds": []}, "seeds"),
        (MODELS, {"seeds": [1, 1]}, "seeds"),
        ({"dense": Trained(), "dense.1": Trained()}, {"seeds": [0, 1]}, "a further seed"),
        ({"dense": Trained(), "x": Pruned("y", 0.5)}, {}, "models.x.of: there is no model 'y'"),
        ({"dense": Pruned("x", 0.5), "x": Pruned("dense", 0.5)}, {}, "dense <- x <- dense"),
    ],
)
def test_what_is_no_plan_is_refused(models: dict[str, Trained], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(models, **changes)


def test_options_of_dictionaries_are_refused_elsewhere() -> None:
    with pytest.raises(UserError, match=r"levels\.neurons"):
        Levels(neurons=Level(seeds=[1]))
    with pytest.raises(UserError, match=r"levels\.circuits"):
        Levels(circuits=Level(extract={}))
    with pytest.raises(UserError, match=r"levels\.sae\.seeds"):
        Levels(sae=Level(seeds=[]))


def test_options_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sparsity"):
        Pruned("dense", 1.5)
    with pytest.raises(UserError, match=r"w\.ckpt: there is no such file"):
        Given(tmp_path / "w.ckpt")
    with pytest.raises(UserError, match="must be a mapping"):
        Training(trainer=[1])  # type: ignore[arg-type]
    assert Training(trainer=None).trainer == {}  # type: ignore[arg-type]
    with pytest.raises(UserError, match="seeds"):
        Level(seeds=[0, 0])


def test_the_backbone_of_a_training_is_refused() -> None:
    with pytest.raises(UserError, match="backbone stands once"):
        Training(model={"backbone": {}})
    with pytest.raises(UserError, match="keep"):
        Training(keep="worst")
