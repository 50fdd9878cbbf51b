"""Several dictionaries train from one stream as each would alone, exactly resumed and the same on two ranks."""

import csv
from inspect import isabstract
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from impact_lightning import cli
from impact_lightning.backbones import Backbone
from impact_lightning.sae import SAE, BatchTopK, ReLU
from impact_lightning.sae.dense_autoencoder import DenseSAE
from impact_lightning.sae.export import export
from impact_lightning.sae.saelens import read_saelens
from impact_lightning.sae.scaling import Scaling
from impact_lightning.sae.sparse_autoencoder import SparseSAE
from impact_lightning.types import UserError
from tests.training.test_resume import in_a_process, killed_fit_of, on_two_ranks

CONFIG = Path(__file__).parents[1] / "conf" / "sae.yaml"
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(Backbone("vit_tiny_patch16_224", model_args={**SMALL}, num_classes=4).build().state_dict(), path)
    return path


def fit(run: Path, weights: Path, *more: str) -> None:
    given = (f"--dir={run}", "--ckpt_path=last", f"--data.backbone.weights={weights}")
    cli.main(["fit", f"--config={CONFIG}", *given, *more])


def state(run: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return content


def curves(run: Path) -> dict[tuple[int, str], float]:
    found: dict[tuple[int, str], float] = {}
    for path in sorted(run.glob("logs/*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                found |= {
                    (int(row["step"]), name): float(value)
                    for name, value in row.items()
                    if value and name.startswith("train/blocks")
                }
    return found


def validations(run: Path) -> list[dict[str, str]]:
    with (run / "logs" / "version_0" / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["val/blocks.1.resid_post/0-BatchTopK-x2-s0/l0"]]


def assert_states_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:  # a threshold that is not calibrated is nan
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, equal_nan=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted")
    assert in_a_process(lambda: fit(run, weights)) == 0
    return run


def test_every_combination_is_trained_and_logged_under_its_name(uninterrupted: Path) -> None:
    names = {name.removesuffix("/fvu") for _, name in curves(uninterrupted) if name.endswith("/fvu")}
    assert names == {
        f"train/blocks.{block}.resid_post/{kind}-x2-s{seed}"
        for block in (0, 1)
        for kind in ("0-BatchTopK", "1-ReLU")
        for seed in (0, 1)
    }


def test_reconstruction_improves(uninterrupted: Path) -> None:
    curve = curves(uninterrupted)
    last = max(step for step, _ in curve)
    for name in {name for _, name in curve if name.endswith("/fvu")}:
        assert curve[last, name] < curve[0, name]


def test_checkpoints_hold_no_backbone(uninterrupted: Path) -> None:
    assert all(name.startswith("dictionaries.") for name in state(uninterrupted))


def test_a_kill_changes_nothing(uninterrupted: Path, weights: Path, tmp_path: Path) -> None:
    for step in (5, 21):
        in_a_process(killed_fit_of(lambda: fit(tmp_path, weights, "--checkpoint.every_n_steps=2"), step))
    assert in_a_process(lambda: fit(tmp_path, weights)) == 0
    assert_states_equal(state(tmp_path), state(uninterrupted))


def test_a_dictionary_trains_with_others_as_it_does_alone(uninterrupted: Path, weights: Path, tmp_path: Path) -> None:
    alone = ("--model.sites=[blocks.1.resid_post]", "--model.seeds=[1]", "--model.kinds=[{class_path: ReLU}]")
    assert in_a_process(lambda: fit(tmp_path, weights, *alone)) == 0
    together = {name: value for name, value in state(uninterrupted).items() if "1_resid_post/1-ReLU-x2-s1" in name}
    mine = {name.replace("0-ReLU", "1-ReLU"): value for name, value in state(tmp_path).items()}
    assert mine.keys() == together.keys()
    assert not [name for name in mine if not torch.equal(mine[name], together[name])]


def test_two_ranks_have_the_curves_of_one(uninterrupted: Path, weights: Path, tmp_path: Path) -> None:
    on_two_ranks(lambda: fit(tmp_path, weights, "--trainer.devices=2"))
    one, two = curves(uninterrupted), curves(tmp_path)
    for key in one:
        assert two[key] == pytest.approx(one[key], rel=1e-5 if key[1].endswith("/fvu") else 1e-6), key


def test_an_export_encodes_raw_activations_as_the_module_does(uninterrupted: Path, tmp_path: Path) -> None:
    cli.main(["export", str(uninterrupted / "checkpoints" / "last.ckpt"), f"--out={tmp_path}"])
    content = torch.load(uninterrupted / "checkpoints" / "last.ckpt", weights_only=True)
    names = {description["name"]: key for key, description in content["dictionaries"].items()}
    assert {path.parent.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*/cfg.json")} == names.keys()
    x = 3 * torch.randn(50, 24, generator=torch.Generator().manual_seed(0)) + 1
    for name, key in names.items():
        state = {n.removeprefix(f"dictionaries.{key}."): v for n, v in content["state_dict"].items() if key in n}
        sae = (BatchTopK if "BatchTopK" in name else ReLU)(24, 48)
        sae.load_state_dict({n.removeprefix("sae."): v for n, v in state.items() if n.startswith("sae.")})
        sae.eval()  # in training BatchTopK selects over the batch
        scaling = Scaling(24)
        scaling.load_state_dict({"mean": state["scaling.mean"], "scale": state["scaling.scale"]})
        codes = sae.encode(scaling(x))
        exported = read_saelens(tmp_path / name)
        torch.testing.assert_close(
            exported.decode(exported.encode(x)), scaling.undo(sae.decode(codes), x), rtol=1e-4, atol=1e-5
        )
        assert torch.equal(exported.encode(x) > 0, codes > 0)


def test_a_checkpoint_without_dictionaries_is_not_exported(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no dictionaries"):
        export(tmp_path / "other.ckpt", out=tmp_path)


def test_the_held_out_l0_of_batch_topk_is_k(uninterrupted: Path) -> None:
    rows = validations(uninterrupted)
    assert len(rows) == 2
    for row in rows:
        l0 = float(row["val/blocks.1.resid_post/0-BatchTopK-x2-s0/l0"])
        assert l0 == pytest.approx(3, abs=1 / 80)  # 80 tokens, all of them calibrate


def test_an_export_folds_a_mean_square_of_one(weights: Path, tmp_path: Path) -> None:
    words = ("--model.scaling=unit_msq", "--model.centre=geometric_median", "--model.kinds=[{class_path: ReLU}]")
    assert in_a_process(lambda: fit(tmp_path, weights, *words, "--trainer.max_epochs=1")) == 0
    cli.main(["export", str(tmp_path / "checkpoints" / "last.ckpt"), f"--out={tmp_path / 'out'}"])
    name, prefix = "blocks.0.resid_post/0-ReLU-x2-s0", "dictionaries.blocks_0_resid_post/0-ReLU-x2-s0."
    tensors = {key.removeprefix(prefix): value for key, value in state(tmp_path).items() if key.startswith(prefix)}
    sae, scaling = ReLU(24, 48), Scaling(24, "unit_msq")
    sae.load_state_dict({key.removeprefix("sae."): value for key, value in tensors.items() if key.startswith("sae.")})
    scaling.load_state_dict({"mean": tensors["scaling.mean"], "scale": tensors["scaling.scale"]})
    x = 3 * torch.randn(50, 24, generator=torch.Generator().manual_seed(0)) + 1
    exported = read_saelens(tmp_path / "out" / name)
    torch.testing.assert_close(exported.decode(exported.encode(x)), scaling.undo(sae(scaling(x)), x))


def test_an_export_refuses_what_cannot_be_folded(weights: Path, tmp_path: Path) -> None:
    words = ("--model.scaling=layer_norm", "--model.kinds=[{class_path: ReLU}]", "--trainer.max_epochs=1")
    assert in_a_process(lambda: fit(tmp_path, weights, *words)) == 0
    with pytest.raises(UserError, match=r"blocks\.0\.resid_post.*layer_norm"):
        export(tmp_path / "checkpoints" / "last.ckpt", out=tmp_path / "out")


def test_transcoders_of_two_widths_train_in_one_fit(weights: Path, tmp_path: Path) -> None:
    words = (
        "--model.sites=[blocks.0.resid_post]",
        "--model.target=blocks.1.resid_post",
        "--model.expansions=[1, 2]",
        "--model.seeds=[0]",
        "--model.kinds=[{class_path: TopK, init_args: {k: 3, skip: true}}]",
    )
    assert in_a_process(lambda: fit(tmp_path, weights, *words)) == 0
    curve = curves(tmp_path)
    for name in ("train/blocks.0.resid_post/0-TopK-x1-s0/fvu", "train/blocks.0.resid_post/0-TopK-x2-s0/fvu"):
        last = max(step for step, key in curve if key == name)
        assert curve[last, name] < curve[0, name]


def test_k_follows_its_schedule(weights: Path, tmp_path: Path) -> None:
    words = (
        "--model.kinds=[{class_path: BatchTopK, init_args: {k: 3}}, {class_path: TopK, init_args: {k: 3}}]",
        "--model.schedule.k_start=4",
        "--model.schedule.k_share=0.5",
        "--model.seeds=[0]",
    )
    assert in_a_process(lambda: fit(tmp_path, weights, *words)) == 0
    curve = curves(tmp_path)
    steps = max(step for step, _ in curve) + 1
    for kind in ("0-BatchTopK", "1-TopK"):
        l0 = [curve[step, f"train/blocks.0.resid_post/{kind}-x2-s0/l0"] for step in range(steps)]
        assert l0[0] == 12
        assert l0[-1] == 3
        assert sorted(l0, reverse=True) == l0


def test_a_fit_that_ends_within_an_epoch_calibrates_its_thresholds(weights: Path, tmp_path: Path) -> None:
    assert in_a_process(lambda: fit(tmp_path, weights, "--trainer.max_epochs=-1", "--trainer.max_steps=7")) == 0
    thresholds = {name: value for name, value in state(tmp_path).items() if name.endswith("threshold")}
    assert len(thresholds) == 4
    assert not any(value.isnan() for value in thresholds.values())
    (row,) = (row for row in validations(tmp_path) if row["step"] == "6")
    assert float(row["val/blocks.1.resid_post/0-BatchTopK-x2-s0/l0"]) == pytest.approx(3, abs=1 / 80)


def test_mixed_precision_selects_and_measures_the_same(uninterrupted: Path, weights: Path, tmp_path: Path) -> None:
    assert in_a_process(lambda: fit(tmp_path, weights, "--trainer.precision=bf16-mixed")) == 0
    assert_states_equal(state(tmp_path), state(uninterrupted))
    assert [{k: v for k, v in row.items() if k.startswith("val/")} for row in validations(tmp_path)] == [
        {k: v for k, v in row.items() if k.startswith("val/")} for row in validations(uninterrupted)
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.expansions=[.nan]"], "model.expansions"),
        (["--model.expansions=[-1]"], "model.expansions"),
        (["--model.expansions=[0.001]"], "needs latents, got 0 for 24 channels"),
        (["--model.expansions=[2, 2]"], "two dictionaries would be called blocks.0.resid_post/0-BatchTopK-x2-s0"),
        (["--model.seeds=[0, 0]"], "two dictionaries would be called blocks.0.resid_post/0-BatchTopK-x2-s0"),
        (["--model.calibration_batches=0"], "model.calibration_batches"),
        (["--model.betas=[1.5, 0.9]"], "model.betas"),
        (["--model.lr=.nan"], "model.lr"),
        (["--trainer.precision=bf16-true"], "use bf16-mixed"),
    ],
)
def test_refuses_what_cannot_be_trained(
    words: list[str], message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, weights, *words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "word", ["--model.expansions=[3]", "--model.scaling=none", "--model.target=blocks.1.resid_post"]
)
def test_refuses_the_checkpoint_of_another_configuration(
    word: str, uninterrupted: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, weights, word, f"--ckpt_path={uninterrupted / 'checkpoints' / 'last.ckpt'}")
    assert "the checkpoint is of another configuration" in capsys.readouterr().err


def test_only_kinds_that_can_be_trained_are_offered() -> None:
    assert all(isabstract(base) for base in (SAE, SparseSAE, DenseSAE))


def test_an_export_goes_on_without_what_saelens_has_no_name_for(weights: Path, tmp_path: Path) -> None:
    words = (
        "--model.sites=[blocks.0.resid_post]",
        "--model.target=blocks.1.resid_post",
        "--model.seeds=[0]",
        "--model.kinds=[{class_path: TopK, init_args: {k: 3}}, {class_path: BatchTopK, init_args: {k: 3}}]",
        "--trainer.max_epochs=1",
    )
    assert in_a_process(lambda: fit(tmp_path, weights, *words)) == 0
    with pytest.raises(UserError, match=r"1 of 2 dictionaries.*0-TopK-x2-s0"):
        export(tmp_path / "checkpoints" / "last.ckpt", out=tmp_path / "out")
    assert [path.parent.name for path in (tmp_path / "out").glob("*/*/cfg.json")] == ["1-BatchTopK-x2-s0"]
    assert (tmp_path / "out" / "README.md").exists()
