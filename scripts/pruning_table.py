"""Accuracy against sparsity of a classifier: how well each method prunes, before and after two epochs.

    python scripts/pruning_table.py --root CIFAR --weights DENSE.safetensors --out FOLDER [--images N] [--show]
    python scripts/pruning_table.py --config configs/finetune_pruned_rooms.yaml --weights "DENSE-{seed}.ckpt" --out F

Every unit (a method, a sparsity, a seed) is pruned by the verb `prune`, fine-tuned by `fit`, and kept as one JSON file
under FOLDER/units. A run that was killed goes on where it was; `--show` prints the table of what there is. The seed
draws the calibration images, the images that are held out of training, and the order of fine-tuning; with `{seed}` in
the name of the weights, the dense model is another one too.
"""

import argparse
import contextlib
import io
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsity_study import Study, Units, spread

from impact_lightning.backbones import fingerprint
from impact_lightning.sparsity import prune, read_protocol

RECIPE = Path(__file__).parents[1] / "configs" / "finetune_pruned_cifar10.yaml"
CALIBRATION = 4096


@dataclass(frozen=True)
class Cell:
    """One place of the table."""

    method: str
    scope: str
    sparsity: float


def groups(shares: list[float]) -> list[list[Cell]]:
    """Return the cells of the table, together what one pass of calibration serves."""
    return [
        [Cell("magnitude", "row", 0.0)],
        *([Cell(method, "row", share) for share in shares] for method in ("random", "magnitude", "wanda")),
        [Cell("sparsegpt", "tensor", share) for share in shares],
        *([Cell(method, "2:4", 0.5)] for method in ("magnitude", "wanda", "sparsegpt")),
    ]


class PruningTable:
    """All units of the table.

    Args:
        study: The recipe of the fine-tune and its images.
        weights: The dense classifier; `{seed}` stands for the seed.
        out: Folder of units and of what is under way.
        groups: The cells.
    """

    def __init__(self, study: Study, weights: str, out: Path, groups: list[list[Cell]]) -> None:
        self.study = study
        self.weights = weights
        self.out = out
        self.groups = groups
        self.units = Units(out / "units")
        self._dense: dict[Path, str] = {}

    def dense(self, seed: int) -> tuple[Path, str]:
        """Return file and fingerprint of the dense weights."""
        path = Path(self.weights.format(seed=seed))
        if path not in self._dense:
            self._dense[path] = fingerprint(self.study.backbone(path).build())
        return path, self._dense[path]

    def unit(self, cell: Cell, seed: int) -> tuple[str, dict[str, Any]]:
        """Return the name of a unit and what it depends on."""
        name = f"{cell.method}-{cell.scope.replace(':', 'of')}-{cell.sparsity}-{seed}"
        sizes = {"images": self.study.images, "test_images": self.study.test_images, "calibration": CALIBRATION}
        made = {"weights": self.dense(seed)[1], "recipe": self.study.recipe}
        return name, {**asdict(cell), "seed": seed, **sizes, **made}

    def pruned(self, cell: Cell, group: list[Cell], seed: int) -> Path:
        """Return the pruned weights of a unit; one pass makes those of its group."""
        dense, identity = self.dense(seed)
        folder = self.out / "pruned" / f"{identity}-{CALIBRATION}-{seed}"
        name = f"{cell.method}-{cell.scope.replace(':', 'of')}"
        path = folder / f"{name}-{cell.sparsity!r}.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(io.StringIO()):
                prune(
                    backbone=self.study.backbone(dense),
                    out=folder / f"{name}-{{sparsity}}.safetensors",
                    data=self.study.data(seed),
                    method=cell.method,  # type: ignore[arg-type]  # one of its literals
                    scope=cell.scope,
                    sparsity=[one.sparsity for one in group],
                    images=CALIBRATION,
                    seed=seed,
                )
        return path

    def measure(self, cell: Cell, group: list[Cell], seed: int) -> None:
        """Prune, measure, fine-tune, measure."""

        def result(run: Path) -> dict[str, Any]:
            path = self.pruned(cell, group, seed)
            before = self.study.accuracy(path)
            self.study.fit(run, seed, f"--model.backbone.weights={path}")
            after = self.study.accuracy(run / "pruned.safetensors")
            achieved = read_protocol(run / "pruned.safetensors")["achieved"]["total"]
            shutil.rmtree(run)
            return {"before": before, "after": after, "achieved": achieved}

        self.units.measure(*self.unit(cell, seed), result)

    def run(self, seeds: int) -> None:
        """Measure what is missing, one seed after another, so that a table of fewer seeds is complete early."""
        for seed in range(seeds):
            for group in self.groups:
                for cell in group:
                    self.measure(cell, group, seed)

    def lines(self, seeds: int) -> Iterator[str]:
        """Yield the lines of a markdown table of all units that there are."""
        yield "| method | scope | zeros | before | after 2 epochs | seeds |"
        yield "|---|---|---|---|---|---|"
        for cell in (cell for group in self.groups for cell in group):
            units = [unit for seed in range(seeds) if (unit := self.units.find(*self.unit(cell, seed)))]
            if units:
                name, scope = (cell.method, cell.scope) if cell.sparsity else ("dense", "-")
                before, after = (spread([unit[when] for unit in units]) for when in ("before", "after"))
                yield f"| {name} | {scope} | {units[0]['achieved']:.1%} | {before} | {after} | {len(units)} |"


def main() -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")  # this script has arguments of its own
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=RECIPE, help="recipe of the fine-tune")
    parser.add_argument("--root", help="class folders with train/ and test/, where the recipe reads files")
    parser.add_argument("--weights", required=True, help="the dense classifier; {seed} stands for the seed")
    parser.add_argument("--out", type=Path, required=True, help="folder of the units")
    parser.add_argument("--images", type=int, default=45000, help="training images of an epoch; a part makes it faster")
    parser.add_argument("--test-images", type=int, default=10000, help="test images")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--show", action="store_true", help="print the table of the units that there are, and end")
    given = parser.parse_args()
    study = Study(given.config, given.root, given.images, given.test_images)
    table = PruningTable(study, given.weights, given.out, groups(given.sparsity))
    if not given.show:
        table.run(given.seeds)
    print(f"{given.images:,} training images an epoch, {given.test_images:,} test images\n")
    print("\n".join(table.lines(given.seeds)))


if __name__ == "__main__":
    main()
