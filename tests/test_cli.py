"""The command line does what the README says, and a mistake ends in one message."""

import subprocess
import sys
from pathlib import Path
from signal import SIGTERM
from time import sleep

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from impact_lightning.backbones import Backbone
from impact_lightning.cli import main
from impact_lightning.results import read_results

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests" / "conf" / "tiny.yaml")
RECIPES = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.glob("configs/*.yaml")
    if not any(word in path.name for word in ("prune_", "impact", "quickstart"))  # tests/suite/test_recipes.py
)
PRUNINGS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/prune_*.yaml"))  # of another verb


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of noise: two classes, train and test."""
    root = tmp_path_factory.mktemp("pictures")
    noise = torch.randint(256, (32, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for number, pixels in enumerate(noise):
        folder = root / ("test" if number % 4 == 0 else "train") / ("cat" if number % 8 < 4 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("fitted")
    main(["fit", f"--config={TINY}", f"--dir={run}", "--trainer.max_epochs=1"])
    return run


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one message with which a command ends in exit code 2."""
    with pytest.raises(SystemExit) as ending:
        main(list(words))
    assert ending.value.code == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


def in_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


# ------------------------------------------------------------------------------------------------------- verbs


def test_version_is_answered_without_importing_torch() -> None:
    code = """
import sys; sys.argv = ["impact_lightning", "--version"]
from impact_lightning.__main__ import main; main()
print("torch" in sys.modules)
"""
    version, has_torch = in_python(code).split("\n")[:2]
    assert version.startswith("impact_lightning ")
    assert has_torch == "False"


def test_help_names_every_verb_and_imports_nothing_that_it_does_not_need() -> None:
    code = """
import sys; from impact_lightning.cli import main
try: main(["fit", "--help"])
except SystemExit: pass
try: main(["--help"])
except SystemExit: pass
print([name for name in ("h5py", "datasets", "sklearn") if name in sys.modules])
"""
    out = in_python(code)
    assert out.strip().endswith("[]")
    assert all(verb in out for verb in ("fit", "validate", "test", "predict", "--dir", "--ckpt_path"))


def test_the_maths_imports_without_wandb_and_jsonargparse() -> None:
    code = """
import sys, pkgutil, importlib; sys.modules.update(wandb=None, jsonargparse=None)
import impact_lightning
for module in pkgutil.walk_packages(impact_lightning.__path__, "impact_lightning."):
    if not module.name.endswith((".cli", ".__main__")):
        importlib.import_module(module.name)
"""
    in_python(code)


def test_fit_then_test_then_predict(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = "--ckpt_path=best"
    main(["test", f"--config={TINY}", f"--dir={fitted}", checkpoint])
    main(["predict", f"--config={TINY}", f"--dir={fitted}", checkpoint])
    capsys.readouterr()
    top1 = next(record for record in read_results(fitted / "results.json") if record.measure == "top1")
    lines = (fitted / "predictions.csv").read_text().splitlines()
    right = sum(line.split(",")[2] == line.split(",")[3] for line in lines[1:])
    assert len(lines) == 1 + top1.n
    assert right / top1.n == pytest.approx(top1.value)
    assert top1.null is not None
    assert top1.interval is not None


def test_validate_says_the_scores_under_their_whole_names(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["validate", f"--config={TINY}", f"--dir={fitted}", "--ckpt_path=last"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("  val  "))
    assert "top1 0." in line
    assert "loss " in line


def test_the_saved_configuration_runs_again_and_test_leaves_it_alone(fitted: Path, tmp_path: Path) -> None:
    before = (fitted / "fit.yaml").read_text()
    main(["test", f"--config={TINY}", f"--dir={fitted}", "--ckpt_path=last"])
    assert (fitted / "fit.yaml").read_text() == before
    main(["fit", f"--config={fitted / 'fit.yaml'}", f"--dir={tmp_path}"])
    first, second = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (fitted, tmp_path)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_several_configurations_merge_from_left_to_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  init_args:\n    weight_decay: 0.125\ndata:\n  init_args:\n    batch_size: 16\n")
    with pytest.raises(SystemExit):
        main(["fit", f"--config={TINY}", f"--config={overlay}", "--data.batch_size=32", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["weight_decay"] == 0.125
    assert config["model"]["init_args"]["lr"] == 1e-3
    assert config["data"]["init_args"]["batch_size"] == 32


def test_wandb_offline_needs_one_line_and_no_account(
    tmp_path: Path, fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    main(
        [
            *("test", f"--config={TINY}", f"--dir={tmp_path / 'tracked'}", "--trainer.logger=WandbLogger"),
            f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}",
        ]
    )
    import wandb

    wandb.finish()
    assert list((tmp_path / "tracked" / "wandb").glob("offline-run-*/*.wandb"))


# ----------------------------------------------------------------------------------------------------- recipes


SMALL = "{img_size: 32, patch_size: 16, embed_dim: 24, depth: 2, num_heads: 3}"
ON_CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true")


def what_a_recipe_leaves_open(recipe: str, pictures: Path) -> list[str]:
    """Return the words that a recipe needs, and that make its images few and small."""
    text = (ROOT / recipe).read_text()
    data = "--data.data" if "LitSAE" in text or "LitCircuit" in text else "--data"
    if "ImageData" in text:
        return [f"{data}.root={pictures}"]
    return [f"{data}.source.size=32", f"{data}.n_train=64"] if "SceneData" in text else []


def n_classes_of(recipe: str) -> int:
    text = (ROOT / recipe).read_text()
    return 2 if "ImageData" in text else 10 if "object_hue" in text else 4


def small_weights(recipe: str, folder: Path) -> Path:
    """Return the weights of a small model that knows the classes of a recipe."""
    small = Backbone("vit_tiny_patch16_224", model_args=yaml.safe_load(SMALL), num_classes=n_classes_of(recipe)).build()
    save_file(small.state_dict(), folder / "small.safetensors")
    return folder / "small.safetensors"


def models_of(recipe: str) -> set[str]:
    return {*yaml.safe_load((ROOT / recipe).read_text())["model"]["init_args"]["models"]}


def small_models(recipe: str, folder: Path) -> str:
    """Return the words that give a recipe small models in place of its own."""
    args = {"weights": str(small_weights(recipe, folder)), "model_args": yaml.safe_load(SMALL)}
    models = {name: {"name": "vit_tiny_patch16_224", **args} for name in models_of(recipe)}
    (folder / "small.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"models": models}}}))
    return f"--config={folder / 'small.yaml'}"


@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in RECIPES if not any(word in recipe for word in ("sae", "neurons", "circuits", "attribution"))],
)
def test_every_recipe_of_a_classifier_runs(
    recipe: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *("fit", f"--config={ROOT / recipe}", f"--dir={tmp_path}", "--trainer.fast_dev_run=1", *ON_CPU),
        *("--data.batch_size=4", "--data.workers=0", "--data.eval_batch_size=4"),
        *(f"--model.backbone.model_args={SMALL}", *what_a_recipe_leaves_open(recipe, pictures)),
    ]
    if "ImageData" in (ROOT / recipe).read_text():
        words += ["--model.backbone.pretrained=false", "--data.preprocess.size=32"]
    main(words)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "sae" in recipe])
def test_every_recipe_of_dictionaries_runs(
    recipe: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Backbone("vit_tiny_patch16_224", model_args=yaml.safe_load(SMALL), num_classes=2).build()
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    main(
        [
            *("fit", f"--config={ROOT / recipe}", f"--dir={tmp_path}", *ON_CPU, "--trainer.enable_progress_bar=false"),
            *("--trainer.max_steps=2", "--trainer.max_epochs=1", "--trainer.limit_val_batches=1"),
            *(
                "--trainer.val_check_interval=1",
                "--data.sites=[blocks.1.resid_post]",
                f"--data.backbone.weights={tmp_path / 'small.safetensors'}",
            ),
            *(
                f"--data.backbone.model_args={SMALL}",
                "--data.backbone.num_classes=2",
                "--data.batch_size=8",
                "--data.image_batch_size=4",
            ),
            *("--data.buffer_images=8", *what_a_recipe_leaves_open(recipe, pictures)),
        ]
    )


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "neurons" in recipe])
def test_every_recipe_of_units_runs(
    recipe: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            *("test", f"--config={ROOT / recipe}", small_models(recipe, tmp_path), f"--dir={tmp_path / 'run'}"),
            *(*ON_CPU, "--trainer.limit_test_batches=1", "--data.eval_batch_size=8"),
            *what_a_recipe_leaves_open(recipe, pictures),
        ]
    )
    assert "auroc_best" in capsys.readouterr().out
    folder = tmp_path / "run" / "neurons"
    assert {path.name for path in folder.iterdir()} >= {"units.html", "comparison.md", "models"}
    assert {path.name for path in (folder / "models").iterdir()} == models_of(recipe)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "attribution" in recipe])
def test_every_recipe_of_maps_runs(
    recipe: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            *("test", f"--config={ROOT / recipe}", small_models(recipe, tmp_path), f"--dir={tmp_path / 'run'}"),
            *(*ON_CPU, "--trainer.limit_test_batches=1", "--data.eval_batch_size=2", "--model.sanity_images=1"),
            *what_a_recipe_leaves_open(recipe, pictures),
        ]
    )
    assert "faithfulness" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run" / "attribution").iterdir()} == models_of(recipe)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "circuits" in recipe])
def test_every_recipe_of_circuits_runs(
    recipe: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *(f"--config={ROOT / recipe}", f"--dir={tmp_path / 'run'}", *ON_CPU, "--trainer.enable_progress_bar=false"),
        small_models(recipe, tmp_path),
        *("--model.learning.batch=4", "--model.mean_images=4", "--model.seeds=[0]", "--trainer.max_steps=2"),
        *("--data.train_images=2", "--data.select_images=2", "--data.report_images=2", "--data.nonsense=false"),
        *what_a_recipe_leaves_open(recipe, pictures),
    ]
    main(["fit", *words])
    main(["test", *words, "--ckpt_path=last"])
    assert "verdict" in capsys.readouterr().out
    assert list((tmp_path / "run" / "circuits").glob("*/masks.safetensors"))
    assert {record.measure for record in read_results(tmp_path / "run" / "results.json")} >= {"nodes", "p_necessary"}


@pytest.mark.parametrize("recipe", PRUNINGS)
def test_every_recipe_of_a_pruning_runs_and_its_model_is_fine_tuned(
    recipe: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sparse-{sparsity}.safetensors"
    model = [f"--backbone.model_args={SMALL}", f"--backbone.num_classes={n_classes_of(recipe)}"]
    weights = f"--backbone.weights={small_weights(recipe, tmp_path)}"
    data = what_a_recipe_leaves_open(recipe, pictures)
    main(["prune", f"--config={ROOT / recipe}", weights, *model, *data, f"--out={out}", "--images=8"])
    assert "blocks.*.mlp.fc2 (2)" in capsys.readouterr().out
    (sparse, *_) = sorted(path for path in tmp_path.glob("sparse-*.safetensors") if ".masks" not in path.name)
    main(
        [
            *(
                "fit",
                f"--config={ROOT / recipe.replace('prune_', 'finetune_pruned_')}",
                f"--dir={tmp_path / 'run'}",
                *ON_CPU,
            ),
            *(f"--model.backbone.model_args={SMALL}", f"--model.backbone.weights={sparse}", *data),
            *("--data.batch_size=4", "--data.eval_batch_size=4", "--trainer.enable_progress_bar=false"),
        ]
    )
    assert "masks kept" in capsys.readouterr().out
    assert (tmp_path / "run" / "pruned.safetensors").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_complete(recipe: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["fit", f"--config={ROOT / recipe}", *what_a_recipe_leaves_open(recipe, pictures), "--print_config"])
    assert not ending.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["dir"] == f"runs/{Path(recipe).stem}"


@pytest.mark.parametrize("part", sorted(path.name for path in ROOT.glob("configs/trainer/*.yaml")))
def test_every_overlay_parses(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["fit", f"--config={TINY}", f"--config={ROOT / 'configs' / 'trainer' / part}", "--print_config"])
    assert not ending.value.code


# ---------------------------------------------------------------------------------------------------- mistakes


def test_a_wrong_key_on_the_command_line_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    message = said(capsys, "fit", f"--config={TINY}", "--model.init_args.lrr=3")
    assert "'lrr'" in message
    assert "on the command line" in message


def test_a_wrong_key_in_a_file_is_named_with_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("trainer:\n  max_epoch: 3\n")
    assert f"max_epoch' ({bad}, line 2)" in said(capsys, "fit", f"--config={TINY}", f"--config={bad}")


def test_a_wrong_type_is_named_with_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("model:\n  init_args:\n    lr: fast\n")
    message = said(capsys, "fit", f"--config={TINY}", f"--config={bad}")
    assert '"model.lr": Expected a float. Got value: fast' in message
    assert f"{bad}, line 3" in message


def test_a_missing_configuration_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml cannot be read" in said(capsys, "fit", "--config=nowhere.yaml")


def test_broken_yaml_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("trainer: [\n")
    assert f"{bad} is not valid YAML" in said(capsys, "fit", f"--config={bad}")


def test_an_unknown_class_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown class 'LitClasifier'" in said(capsys, "fit", f"--config={TINY}", "--model=LitClasifier")


def test_an_unknown_factor_is_named_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = said(capsys, "fit", f"--config={TINY}", "--data.label=[colour]", f"--dir={tmp_path}")
    assert "data.label" in message
    assert "'colour'" in message
    assert "object_hue" in message


def test_an_unknown_model_is_named_with_its_neighbours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = said(capsys, "fit", f"--config={TINY}", "--model.backbone.name=vit_tny_patch16_224", f"--dir={tmp_path}")
    assert "vit_tiny_patch16_224" in message


def test_no_verb_and_a_wrong_verb_are_answered_with_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "fit" in said(capsys)
    assert "fit" in said(capsys, "train")


def test_a_folder_that_holds_a_run_is_not_overwritten(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (fitted / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert "--ckpt_path last" in said(capsys, "fit", f"--config={TINY}", f"--dir={fitted}")
    assert (fitted / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = said(capsys, "test", f"--config={TINY}", f"--dir={tmp_path}", "--ckpt_path=best")
    assert f"{tmp_path}/checkpoints/best.ckpt" in message


@pytest.mark.parametrize("content", [b"", b"half a checkpoint", "cut"])
def test_a_damaged_checkpoint_is_named(
    content: bytes | str, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged.ckpt"
    whole = (fitted / "checkpoints" / "last.ckpt").read_bytes()
    damaged.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    message = said(capsys, "test", f"--config={TINY}", f"--dir={tmp_path}", f"--ckpt_path={damaged}")
    assert f"{damaged} is damaged" in message


def test_a_checkpoint_of_another_model_is_refused_with_the_names(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(
        capsys,
        *("test", f"--config={TINY}", f"--dir={tmp_path}", f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}"),
        "--model.backbone.model_args={img_size: 16, patch_size: 8, embed_dim: 48, depth: 2, num_heads: 3}",
    )
    assert "does not fit" in message
    assert "48" in message


def test_a_batch_that_does_not_divide_over_the_images_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "batch_size 999" in said(capsys, "fit", f"--config={TINY}", "--data.batch_size=999", f"--dir={tmp_path}")


def test_a_monitor_that_is_not_logged_is_named_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(capsys, "fit", f"--config={TINY}", "--checkpoint.monitor=val/top2", f"--dir={tmp_path}")
    assert "val/top2" in message
    assert "val/top1" in message


def test_measuring_random_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--ckpt_path best" in said(capsys, "test", f"--config={TINY}", f"--dir={tmp_path}")


@pytest.mark.parametrize("words", [["--data.source.size=32"], ["--data.source=Sprites", "--data.label=[shape]"]])
def test_images_that_the_model_cannot_take_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(capsys, "fit", f"--config={TINY}", f"--dir={tmp_path}", *words)
    assert "img_size" in message
    assert "(3, 16, 16)" in message


def test_a_missing_accelerator_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        return  # then it is not missing
    assert "CUDA" in said(capsys, "fit", f"--config={TINY}", f"--dir={tmp_path}", "--trainer.accelerator=cuda")


def test_torchrun_takes_our_options_for_ours() -> None:
    from torch.distributed.run import get_args_parser

    words = ["--nproc_per_node", "8", "-m", "impact_lightning", "fit", "--dir", "runs/x", "--ckpt_path", "last"]
    parsed = get_args_parser().parse_args(words)
    assert parsed.training_script_args == words[4:]


def test_processes_of_torchrun_that_the_trainer_does_not_know_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    message = said(capsys, "fit", f"--config={TINY}", f"--dir={tmp_path}")
    assert "torchrun has started 2 processes, and the trainer has 1" in message
    assert "trainer.devices" in message


def test_a_trainer_may_start_its_ranks_itself(tmp_path: Path) -> None:
    words = ["fit", f"--config={TINY}", f"--dir={tmp_path}", "--trainer.max_epochs=1", "--trainer.devices=2"]
    code = f"from impact_lightning.cli import main; main({[*words, '--trainer.strategy=ddp_fork']})"
    in_python(code)
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_run_that_is_stopped_ends_with_the_code_of_sigterm_and_can_go_on(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "impact_lightning", "fit", f"--config={TINY}", f"--dir={tmp_path}"]
    with (tmp_path / "said").open("w+") as said_file:
        run = subprocess.Popen([*words, "--trainer.max_epochs=10000"], cwd=ROOT, stderr=said_file, stdout=said_file)
        last = tmp_path / "checkpoints" / "last.ckpt"
        while not last.exists() and run.poll() is None:
            sleep(0.1)
        run.terminate()
        assert run.wait(60) == 128 + SIGTERM
        said_file.seek(0)
        assert "Traceback" not in said_file.read()
    assert torch.load(last, weights_only=True)["global_step"] > 0


def test_a_validation_in_the_middle_of_accumulated_gradients_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(
        capsys,
        *("fit", f"--config={TINY}", f"--dir={tmp_path}"),
        *("--trainer.val_check_interval=3", "--trainer.accumulate_grad_batches=2"),
    )
    assert "choose a multiple" in message


def test_a_bad_results_file_is_refused_before_the_test(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text('{"schema": 1, "rec')
    checkpoint = f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}"
    assert "not complete JSON" in said(capsys, "test", f"--config={TINY}", f"--dir={tmp_path}", checkpoint)


def test_a_run_is_not_continued_with_another_seed(fitted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("fit", f"--config={TINY}", f"--dir={fitted}", "--ckpt_path=last", "--seed_everything=7")
    assert "begun with seed_everything 0, now it is 7" in said(capsys, *words)


@pytest.mark.parametrize(
    "word",
    [
        "--trainer.devices=0",
        "--trainer.accelerator=banana",
        "--seed_everything=-1",
        "--dir=",
        "--checkpoint.every_n_steps=0",
    ],
)
def test_values_that_make_no_sense_end_in_one_message(
    word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "fit", f"--config={TINY}", f"--dir={tmp_path}", word)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert "file" in said(capsys, "fit", f"--config={TINY}", f"--dir={tmp_path / 'file'}")


def test_a_configuration_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    assert "binary is not valid YAML" in said(capsys, "fit", f"--config={tmp_path / 'binary'}")
