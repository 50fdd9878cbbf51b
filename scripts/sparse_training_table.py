"""Accuracy of classifiers that are trained with sparse weights, against their density, beside gradual pruning.

    python scripts/sparse_training_table.py --config configs/sparse_rooms.yaml --out FOLDER [--images N] [--show]
    python scripts/sparse_training_table.py --config configs/sparse_cifar10.yaml --root CIFAR --out FOLDER

Every fit is kept as one JSON file under FOLDER/units, and its weights as FOLDER/models/METHOD-DENSITY-LR-SEED.ckpt. A
run that was killed goes on where it was; `--show` prints the table of what there is.
"""

import argparse
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sparsity_study import Study, Units, spread

CALLBACK = "--trainer.callbacks"
METHODS = {
    "weight-sparse": [],
    "gradual pruning": [
        *(f"{CALLBACK}.regrow=false", f"{CALLBACK}.course=cubic", f"{CALLBACK}.sharkfin=false"),
        *(f"{CALLBACK}.gradient=none", f"{CALLBACK}.min_alive=0"),
    ],
}


class Table:
    """All fits of the table.

    Args:
        study: The recipe and its images.
        out: Folder of units and weights.
        epochs: Epochs of a fit.
        batch: Images of a step.
        more: Further words for `fit`.
    """

    def __init__(self, study: Study, out: Path, epochs: int, batch: int, more: list[str]) -> None:
        self.study = study
        self.out = out
        self.epochs = epochs
        self.batch = batch
        self.more = more
        self.units = Units(out / "units")

    def cell(self, method: str, density: float, rate: float, seed: int) -> tuple[str, dict[str, Any]]:
        """Return name and key of a fit; without zeros all methods are one."""
        name = f"{method.replace(' ', '_')}-{density:g}-{rate:g}-{seed}"
        key = {"method": method, "density": density, "lr": rate, "seed": seed, "recipe": self.study.recipe}
        sizes = {"images": self.study.images, "test_images": self.study.test_images}
        return name, {**key, **sizes, "epochs": self.epochs, "batch": self.batch, "more": self.more}

    def fit(self, method: str, density: float, rate: float, seed: int) -> None:
        """Train, and measure on the test images."""
        name, key = self.cell(method, density, rate, seed)

        def measure(run: Path) -> dict[str, Any]:
            sizes = [f"--trainer.max_epochs={self.epochs}", f"--data.batch_size={self.batch}"]
            words = [f"{CALLBACK}.density={density}", *METHODS[method], f"--model.lr={rate}", *sizes, *self.more]
            self.study.fit(run, seed, *words)
            kept = self.out / "models" / f"{name}.ckpt"
            kept.parent.mkdir(parents=True, exist_ok=True)
            os.replace(run / "checkpoints" / "last.ckpt", kept)
            shutil.rmtree(run)
            weights = self.study.backbone(kept).build().blocks.state_dict()
            matrices = [value for value in weights.values() if value.ndim == 2]
            nonzero = sum(int(torch.count_nonzero(one)) for one in matrices) / sum(one.numel() for one in matrices)
            return {"top1": self.study.accuracy(kept), "val": self.study.accuracy(kept, "val"), "nonzero": nonzero}

        self.units.measure(name, key, measure)

    def lines(self, densities: list[float], rates: list[float], seeds: int) -> Iterator[str]:
        """Yield a markdown table: of several learning rates the one with most seeds, then the best in validation."""
        yield "| method | zeros in the blocks | top-1 | learning rate | seeds |"
        yield "|---|---|---|---|---|"
        for method in METHODS:
            for density in densities:
                if found := self._best(method, density, rates, seeds):
                    zeros = 1 - mean(unit["nonzero"] for unit in found)
                    name = method if density < 1 else "dense"
                    accuracies = spread([unit["top1"] for unit in found])
                    yield f"| {name} | {zeros:.1%} | {accuracies} | {found[0]['lr']:g} | {len(found)} |"

    def _best(self, method: str, density: float, rates: list[float], seeds: int) -> list[dict[str, Any]]:
        several = []
        for rate in rates:
            cells = [self.cell(method, density, rate, seed) for seed in range(seeds)]
            found = [unit for name, key in cells if (unit := self.units.find(name, key))]
            several += [found] if found else []
        return max(several, key=lambda found: (len(found), found[0].get("val", 0.0)), default=[])


def main() -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")  # this script has arguments of its own
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a recipe with the callback WeightSparse")
    parser.add_argument("--root", help="class folders, where the recipe reads files")
    parser.add_argument("--out", type=Path, required=True, help="folder of units and weights")
    parser.add_argument("--images", type=int, default=20000, help="training images of an epoch")
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64, help="images of a step")
    parser.add_argument("--density", type=float, nargs="+", default=[1.0, 0.5, 0.1, 0.02])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--show", action="store_true", help="print the table of what there is, and end")
    parser.add_argument("--fit", nargs=argparse.REMAINDER, default=[], help="what follows are words for `fit`")
    given = parser.parse_args()
    study = Study(given.config, given.root, given.images, given.test_images)
    table = Table(study, given.out, given.epochs, given.batch, given.fit)
    if not given.show:
        for seed in range(given.seeds):  # so that a table of fewer seeds is complete early
            for method in given.methods:
                for density in given.density:
                    for rate in given.lr:
                        if density < 1 or method == "weight-sparse":
                            table.fit(method, density, rate, seed)
    print(f"{given.epochs} epochs of {given.images:,} images, {given.test_images:,} test images\n")
    print("\n".join(table.lines(given.density, given.lr, given.seeds)))


if __name__ == "__main__":
    main()
