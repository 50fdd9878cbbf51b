"""`test` measures the units of several models, and says what it cannot do in one message."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from impact_lightning.backbones import Backbone
from impact_lightning.cli import main
from impact_lightning.results import Record, read_results
from impact_lightning.training.unit_pictures import UnitPictures
from tests.data.pictures import write_folders, write_shards
from tests.said import said
from tests.training.test_resume import on_two_ranks

SHAPE: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
N = 37  # five batches
SCENES = (
    *("--data=SceneData", "--data.source=Rooms", "--data.source.size=16", "--data.label=[shape]"),
    *("--data.n_train=1", "--data.n_val=1", f"--data.n_test={N}", "--data.eval_batch_size=8"),
)
QUIET = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false")
SETTINGS = ("--model.settings.top_neurons=5", "--model.settings.top_heads=1", "--model.settings.impact_images=3")
OF = ["neurons", "heads", *(f"blocks.{block}.{kind}" for block in (0, 1) for kind in ("neurons", "heads"))]
OF_LABELS = {  # measures in which labels have a part
    *("ablation_impact", "selectivity", "class_variance", "label_entropy", "auroc_best", "d_prime_best"),
    *("class_selectivity", "class_information", "eta_squared", "precision_at_k", "informedness", "average_precision"),
}
OTHERS = {
    *("lifetime_treves_rolls", "lifetime_hoyer", "lifetime_gini", "kurtosis", "density", "dead"),
    *("population_treves_rolls", "population_hoyer", "population_gini"),
}


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Figures and the browser have tests of their own, and take most of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(UnitPictures, "on_test_end", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models of four classes, and one of two."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (name, n_classes) in enumerate({"dense": 4, "sparse": 4, "two": 2}.items()):
        torch.manual_seed(seed)
        model = Backbone("vit_tiny_patch16_224", model_args={**SHAPE}, num_classes=n_classes).build()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return folder


def model_of(name: str, path: Path | None, **more: Any) -> str:
    """Return a model as words of the command line."""
    shape = ", ".join(f"{key}: {str(value).lower()}" for key, value in {**SHAPE, **more}.items())
    weights = "" if path is None else f"weights: {path}, "
    return f"{name}: {{name: vit_tiny_patch16_224, {weights}model_args: {{{shape}}}}}"


def measure(run: Path, models: list[str], *more: str, data: tuple[str, ...] = SCENES, verb: str = "test") -> None:
    main(words_of(run, models, *more, data=data, verb=verb))


def words_of(run: Path, models: list[str], *more: str, data: tuple[str, ...] = SCENES, verb: str = "test") -> list[str]:
    """Return the words of a command line."""
    model = ("--model=LitNeurons", f"--model.models={{{', '.join(models)}}}")
    return [verb, f"--dir={run}", *model, *data, *QUIET, *more]


def records_of(run: Path) -> dict[tuple[str, str], Record]:
    return {(record.of, record.measure): record for record in read_results(run / "results.json")}


def number(value: float) -> Any:
    """Return something that nan equals too."""
    return pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True)  # float32 in other memory


def assert_same(found: dict[tuple[str, str], Record], expected: dict[tuple[str, str], Record]) -> None:
    assert found.keys() == expected.keys()
    for key, record in expected.items():
        mine = found[key]
        assert mine.value == number(record.value), key
        assert mine.interval is not None
        assert record.interval is not None
        assert (mine.interval.low, mine.interval.high) == number_pair(record.interval.low, record.interval.high), key
        assert (mine.null is None) == (record.null is None)
        if mine.null is not None and record.null is not None:
            assert mine.null.value == number(record.null.value), key
        assert (mine.n, mine.protocol, mine.weights, mine.data) == (
            record.n,
            record.protocol,
            record.weights,
            record.data,
        )


def number_pair(low: float, high: float) -> Any:
    return pytest.approx((low, high), rel=1e-6, abs=1e-6, nan_ok=True)


@pytest.fixture(scope="module")
def two(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of two models."""
    run = tmp_path_factory.mktemp("two")
    measure(run, [model_of(name, weights / f"{name}.safetensors") for name in ("dense", "sparse")], *SETTINGS)
    return run


# --------------------------------------------------------------------------------------------------------- records


def test_there_is_a_record_of_every_model_and_difference_layer_and_measure(two: Path) -> None:
    records = records_of(two)
    models = ["dense", "sparse", "sparse - dense"]
    assert records.keys() == {(f"{model}/{of}", name) for model in models for of in OF for name in OF_LABELS | OTHERS}


def test_every_record_has_its_interval_and_null(two: Path) -> None:
    for (of, name), record in records_of(two).items():
        assert record.interval is not None
        assert record.interval.how.startswith("bootstrap over classes")
        assert not record.interval.low > record.interval.high
        is_difference = " - " in of
        assert (record.null is not None) == (is_difference or name in OF_LABELS)
        if record.null is not None and is_difference:
            assert record.null.value == 0


def test_records_carry_their_protocol(two: Path) -> None:
    records = records_of(two)
    record = records["sparse/blocks.1.neurons", "selectivity"]
    assert record.protocol["images"] == N
    assert record.protocol["n_classes"] == 4
    assert record.protocol["top_neurons"] == 5
    assert record.protocol["pooling"] == "cls"
    assert record.n == 4  # classes
    assert records["sparse/blocks.1.neurons", "kurtosis"].n == 96  # units
    assert record.null is not None
    assert record.null.value == 0.5
    dense, sparse = (records[f"{name}/heads", "density"].weights for name in ("dense", "sparse"))
    assert dense != sparse
    assert records["sparse - dense/heads", "density"].weights == f"{sparse} - {dense}"


def test_a_difference_is_that_of_values_less_nulls(two: Path) -> None:
    records = records_of(two)
    for of in OF:
        for name in OF_LABELS | OTHERS:
            dense, sparse = (records[f"{model}/{of}", name] for model in ("dense", "sparse"))
            excess = [r.value - (r.null.value if r.null else 0.0) for r in (dense, sparse)]
            difference = records[f"sparse - dense/{of}", name]
            assert difference.value == number(excess[1] - excess[0])


def test_a_model_alone_has_the_numbers_that_it_has_beside_another(weights: Path, two: Path, tmp_path: Path) -> None:
    measure(tmp_path, [model_of("sparse", weights / "sparse.safetensors")], *SETTINGS)
    alone, beside = records_of(tmp_path), records_of(two)
    assert_same(alone, {key: record for key, record in beside.items() if key[0].startswith("sparse/")})


def test_equal_models_do_not_differ(weights: Path, tmp_path: Path) -> None:
    path = weights / "dense.safetensors"
    measure(tmp_path, [model_of("a", path), model_of("b", path)], *SETTINGS)
    differences = [record for (of, _), record in records_of(tmp_path).items() if of.startswith("b - a/")]
    defined = [record for record in differences if record.value == record.value]
    assert len(defined) > 100
    for record in defined:
        assert record.interval is not None
        assert (record.value, record.interval.low, record.interval.high) == (0, 0, 0)


def test_blocks_and_kinds_are_chosen(weights: Path, two: Path, tmp_path: Path) -> None:
    words = ("--model.blocks=[-1]", "--model.kinds=[neuron]")
    measure(tmp_path, [model_of("sparse", weights / "sparse.safetensors")], *SETTINGS, *words)
    found = records_of(tmp_path)
    assert {of for of, _ in found} == {"sparse/neurons", "sparse/blocks.1.neurons"}
    for name in OF_LABELS | OTHERS:
        expected = records_of(two)["sparse/blocks.1.neurons", name]
        assert found["sparse/blocks.1.neurons", name].value == number(expected.value)
        assert found["sparse/neurons", name].value == number(expected.value)


def test_the_seed_moves_nulls_and_intervals_only(weights: Path, two: Path, tmp_path: Path) -> None:
    measure(tmp_path, [model_of("sparse", weights / "sparse.safetensors")], *SETTINGS, "--seed_everything=5")
    found, former = records_of(tmp_path), records_of(two)
    assert all(record.value == number(former[key].value) for key, record in found.items())
    key = "sparse/neurons", "auroc_best"
    assert found[key].seed == 5
    assert found[key].null != former[key].null
    assert found[key].interval != former[key].interval


# ----------------------------------------------------------------------------------------------------------- ranks


def both(weights: Path) -> list[str]:
    return [model_of(name, weights / f"{name}.safetensors") for name in ("dense", "sparse")]


def test_two_ranks_have_the_records_of_one(weights: Path, two: Path, tmp_path: Path) -> None:
    on_two_ranks(lambda: measure(tmp_path, both(weights), *SETTINGS, "--trainer.devices=2"))
    assert_same(records_of(tmp_path), records_of(two))


def test_two_ranks_draw_the_bins_of_one(weights: Path, tmp_path: Path) -> None:
    words = (*SETTINGS, "--model.settings.calibration=9", "--model.settings.bins=8")
    measure(tmp_path / "one", both(weights), *words)
    on_two_ranks(lambda: measure(tmp_path / "two", both(weights), *words, "--trainer.devices=2"))
    assert_same(records_of(tmp_path / "two"), records_of(tmp_path / "one"))


@pytest.mark.slow
def test_a_rank_without_images_changes_nothing(weights: Path, tmp_path: Path) -> None:
    words = (*SETTINGS, "--data.eval_batch_size=64")
    measure(tmp_path / "one", both(weights), *words)
    on_two_ranks(lambda: measure(tmp_path / "two", both(weights), *words, "--trainer.devices=2"))
    assert_same(records_of(tmp_path / "two"), records_of(tmp_path / "one"))


@pytest.mark.slow
def test_forked_ranks_write_results(weights: Path, two: Path, tmp_path: Path) -> None:
    words = words_of(tmp_path, both(weights), *SETTINGS, "--trainer.devices=2", "--trainer.strategy=ddp_fork")
    subprocess.run([sys.executable, "-m", "impact_lightning", *words], check=True, cwd=Path(__file__).parents[2])
    assert_same(records_of(tmp_path), records_of(two))


# ---------------------------------------------------------------------------------------------------------- limits


def test_a_rehearsal_runs_and_writes_nothing(weights: Path, tmp_path: Path) -> None:
    measure(tmp_path, both(weights), "--trainer.fast_dev_run=true")
    assert not list(tmp_path.iterdir())


def test_some_batches_are_measured_as_data_of_their_own(weights: Path, tmp_path: Path) -> None:
    measure(tmp_path, both(weights), "--trainer.limit_test_batches=1")
    assert {record.protocol["images"] for record in records_of(tmp_path).values()} == {8}


PIXELS = ("--data.preprocess.size=16", "--data.eval_batch_size=4")


def folders(root: Path, counts: dict[str, int]) -> tuple[str, ...]:
    """Write class folders as a test split, and return the words that read them."""
    for split in ("train", "test"):
        write_folders(root / split, counts)
    return ("--data=ImageData", f"--data.root={root}", *PIXELS)


def test_the_null_of_some_batches_is_of_their_labels(weights: Path, tmp_path: Path) -> None:
    data = folders(tmp_path / "data", {"cat": 8, "dog": 8})
    measure(tmp_path / "run", [model_of("a", weights / "two.safetensors")], "--trainer.limit_test_batches=1", data=data)
    record = records_of(tmp_path / "run")["a/neurons", "precision_at_k"]
    assert record.value == 1  # four images, all of them cats
    assert record.null is not None
    assert record.null.value == 1


def test_a_damaged_image_is_left_out_and_noted(weights: Path, tmp_path: Path) -> None:
    data = folders(tmp_path / "data", {"cat": 5, "dog": 5})
    (tmp_path / "data" / "test" / "cat" / "2.jpg").write_bytes(b"no picture")
    measure(tmp_path / "run", [model_of("a", weights / "two.safetensors")], "--data.on_error=skip", data=data)
    record = records_of(tmp_path / "run")["a/neurons", "auroc_best"]
    assert record.protocol["images"] == 9
    assert "1 damaged samples left out" in record.notes[0]


# -------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.blocks=[2]"], "there is no block 2 in a model of 2 blocks, 0 to 1"),
        (["--model.blocks=[]"], "blocks and kinds must name at least one each"),
        (["--model.kinds=[latent]"], "latent"),
        (["--data.source.size=32"], "the images are (3, 32, 32) and a takes (3, 16, 16)"),
        (["--data.label=[scale]"], "head.bias (4,) instead of (8,)"),
        (["--model.settings.bins=7"], "model.settings.bins must be at least 8, got 7"),
        (["--model.settings.k=5"], "model.settings.shown is 8"),
        (["--model.settings.pooling=max"], "max"),
        (["--trainer.precision=bf16-true"], "bf16-mixed"),
        (["--trainer.precision=64-true"], "precision"),
    ],
)
def test_what_cannot_be_measured_is_named(
    words: list[str], message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of("a", weights / "dense.safetensors")
    assert message in said(capsys, lambda: measure(tmp_path, [model], *words))
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (model_of("a", None), "model.models.a would have random weights"),
        (model_of("'a b'", None), "'a b' names files"),
        (model_of("'../a'", None), "'../a' names files"),
        (model_of("a", Path("nowhere.safetensors")), "weights file nowhere.safetensors does not exist"),
        ("a: {name: vit_tny_patch16_224, weights: nowhere.pth}", "did you mean vit_tiny_patch16_224"),
        ("a: {name: vit_tiny_patch16_224, pretrained: true}", "knows 1000 classes and the data has 4"),
        ("a: {name: vit_tiny_patch16_224, weights: w.pth, num_classes: 7}", "num_classes 7, the data has 4 classes"),
        ("", "model.models is empty"),
    ],
)
def test_a_model_that_cannot_be_measured_is_named(
    model: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(capsys, lambda: measure(tmp_path, [model]))


def test_a_model_without_a_class_token_is_not_read_there(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {**SHAPE, "class_token": False, "global_pool": "avg"}
    pooled = Backbone("vit_tiny_patch16_224", model_args=shape, num_classes=4).build()
    save_file(pooled.state_dict(), tmp_path / "pooled.safetensors")
    model = model_of("a", tmp_path / "pooled.safetensors", class_token=False, global_pool="avg")
    assert "pooling" in said(capsys, lambda: measure(tmp_path / "run", [model]))
    measure(tmp_path / "run", [model], "--model.settings.pooling=patch_max")


def test_it_trains_nothing(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of("a", weights / "dense.safetensors")
    message = said(capsys, lambda: measure(tmp_path, [model], "--trainer.max_epochs=1", verb="fit"))
    assert message == "error: LitNeurons trains nothing: run `test`"


def test_a_checkpoint_is_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = tmp_path / "some.ckpt", model_of("a", weights / "dense.safetensors")
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 0}, path)
    message = said(capsys, lambda: measure(tmp_path, [model], f"--ckpt_path={path}"))
    assert "LitNeurons takes no --ckpt_path" in message


def test_a_stream_is_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        write_shards(tmp_path / "data", [4, 4], split)
    data = ("--data=ImageData", f"--data.root={tmp_path / 'data'}", "--data.source=wds", *PIXELS)
    model = model_of("a", weights / "two.safetensors")
    assert "not known in advance" in said(capsys, lambda: measure(tmp_path, [model], data=data))


def test_one_class_is_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folders(tmp_path / "data", {"cat": 4})
    model = model_of("a", weights / "two.safetensors")
    assert "needs two classes, the data has 1" in said(capsys, lambda: measure(tmp_path, [model], data=data))
