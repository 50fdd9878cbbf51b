"""On rows made from a known sparse dictionary, a fit finds the directions of that dictionary."""

from pathlib import Path

import pytest

from impact_lightning import cli
from impact_lightning.sae.saelens import read_saelens
from tests.sae.planted import Planted
from tests.training.test_resume import in_a_process

CONFIG = Path(__file__).parents[1] / "conf" / "planted.yaml"
SMALL = Planted(width=32, n_directions=64, active=3)
KINDS = {
    "TopK": "{k: 3}",
    "JumpReLU": "{target_l0: 3}",
    "ReLU": "{sparsity_weight: 1}",
    "Gated": "{sparsity_weight: 3}",
    # a first prefix of 8 latents, its default here, has to stand for 64 directions and so for none of them
    "Matryoshka": "{k: 3, prefixes: [64, 128]}",
}


def shards(planted: Planted, root: Path) -> Path:
    """Write 128 training rows for each step of batch 1024, and some to calibrate with."""
    planted.write(root / "train", 2**17, seed=2)
    planted.write(root / "val", 2**13, seed=3)
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(SMALL, tmp_path_factory.mktemp("small"))


def recovered(planted: Planted, shards: Path, run: Path, kinds: dict[str, str], steps: int) -> dict[str, float]:
    """Fit dictionaries four times as wide as rows, export them, and return the share of directions that each found."""
    model = ", ".join(f"{{class_path: {kind}, init_args: {settings}}}" for kind, settings in kinds.items())
    data = [f"--data.{split}={shards / split}" for split in ("train", "val")]

    def body() -> None:
        cli.main(
            [
                "fit",
                f"--config={CONFIG}",
                f"--dir={run}",
                f"--model.kinds=[{model}]",
                *data,
                f"--trainer.max_steps={steps}",
            ]
        )
        cli.main(["export", str(run / "checkpoints" / "last.ckpt"), f"--out={run / 'export'}"])

    assert in_a_process(body) == 0
    folders = (path.parent for path in (run / "export").glob("*/*/cfg.json"))
    return {folder.name.split("-")[1]: planted.recovered(read_saelens(folder).w_dec) for folder in folders}


def test_batch_topk_finds_the_planted_directions(small: Path, tmp_path: Path) -> None:
    assert recovered(SMALL, small, tmp_path, {"BatchTopK": "{k: 3}"}, steps=1000)["BatchTopK"] >= 0.95


def test_a_dictionary_that_is_hardly_trained_finds_almost_none(small: Path, tmp_path: Path) -> None:
    assert recovered(SMALL, small, tmp_path, {"BatchTopK": "{k: 3}"}, steps=1)["BatchTopK"] <= 0.05


@pytest.mark.slow
def test_other_kinds_find_the_planted_directions(small: Path, tmp_path: Path) -> None:
    found = recovered(SMALL, small, tmp_path, KINDS, steps=1000)
    assert found.keys() == KINDS.keys()
    assert min(found.values()) >= 0.95, found
