"""Accuracy against sparsity on a CIFAR-10 classifier: how well each method prunes, before and after two epochs.

    python scripts/pruning_table.py --root CIFAR --weights DENSE.safetensors --out FOLDER [--images N] [--show]

Every unit (a method, a sparsity, a seed) is pruned by the verb `prune`, fine-tuned by `fit` with
`configs/finetune_pruned_cifar10.yaml`, and kept as one JSON file under FOLDER/units. A run that was killed goes on
where it was; `--show` prints the table of what there is. The seed draws the calibration images, the images that are
held out of training, and the order of fine-tuning.
"""

import argparse
import contextlib
import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

import torch
import yaml

from impact_lightning import cli
from impact_lightning.backbones import Backbone, fingerprint
from impact_lightning.data.images import ImageData
from impact_lightning.data.transforms import Preprocess
from impact_lightning.files import atomic_write
from impact_lightning.sparsity import prune, read_protocol
from impact_lightning.types import UserError

RECIPE = Path(__file__).parents[1] / "configs" / "finetune_pruned_cifar10.yaml"
SHARES = [0.3, 0.5, 0.7, 0.9]
CALIBRATION = 4096
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantiles by the number of seeds


@dataclass(frozen=True)
class Cell:
    """One place of the table."""

    method: str
    scope: str
    sparsity: float


GROUPS = [  # what one pass of calibration serves
    [Cell("magnitude", "row", 0.0)],
    *([Cell(m, s, share) for share in SHARES] for m, s in (("random", "row"), ("magnitude", "row"), ("wanda", "row"))),
    [Cell("sparsegpt", "tensor", share) for share in SHARES],
    *([Cell(method, "2:4", 0.5)] for method in ("magnitude", "wanda", "sparsegpt")),
]


@dataclass(frozen=True)
class Experiment:
    """Everything that a number of the table depends on.

    Args:
        root: Class folders of CIFAR-10.
        weights: The dense classifier.
        out: Folder of units and of what is under way.
        images: Training images of an epoch, the same number of each class.
        test_images: Test images, likewise.
    """

    root: str
    weights: Path
    out: Path
    images: int
    test_images: int

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the fine-tune: it also says which model it is, and how images are prepared."""
        recipe: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
        return recipe

    @cached_property
    def dense(self) -> str:
        """Fingerprint of the dense weights."""
        return fingerprint(self.backbone(self.weights).build())

    @cached_property
    def test(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Normalised test images and their labels, in batches."""
        data = self.data(0, self.test_images)
        loaded = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
        return [(batch.images, batch.labels) for batch in loaded]

    def backbone(self, weights: Path) -> Backbone:
        """Return the model with some weights."""
        args = self.recipe["model"]["init_args"]["backbone"]
        return Backbone(args["name"], weights=weights, model_args=args["model_args"], num_classes=10)

    def data(self, seed: int, images: int | None = None) -> ImageData:
        """Return the images without augmentation, all or so many."""
        preprocess = Preprocess(**self.recipe["data"]["init_args"]["preprocess"])
        limit = None if images is None else images // 10
        return ImageData(self.root, preprocess=preprocess, limit=limit, seed=seed)

    def key(self, cell: Cell, seed: int) -> dict[str, Any]:
        """Return what a unit depends on."""
        sizes = {"images": self.images, "test_images": self.test_images, "calibration": CALIBRATION}
        return {**asdict(cell), "seed": seed, **sizes, "weights": self.dense, "recipe": self.recipe}

    def unit(self, cell: Cell, seed: int) -> Path:
        """Return the file of a unit."""
        digest = hashlib.sha256(json.dumps(self.key(cell, seed), sort_keys=True).encode()).hexdigest()[:12]
        name = f"{cell.method}-{cell.scope.replace(':', 'of')}-{cell.sparsity}-{seed}-{digest}.json"
        return self.out / "units" / name

    @torch.no_grad()
    def accuracy(self, weights: Path) -> float:
        """Return top-1 on the test images, in float32."""
        model = self.backbone(weights).build().eval()
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in self.test)
        return right / sum(len(labels) for _, labels in self.test)

    def pruned(self, cell: Cell, group: list[Cell], seed: int) -> Path:
        """Return the pruned weights of a unit; one pass makes those of its group."""
        folder = self.out / "pruned" / f"{self.dense}-{CALIBRATION}-{seed}"
        name = f"{cell.method}-{cell.scope.replace(':', 'of')}"
        path = folder / f"{name}-{cell.sparsity!r}.safetensors"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(io.StringIO()):
                prune(
                    backbone=self.backbone(self.weights),
                    out=folder / f"{name}-{{sparsity}}.safetensors",
                    data=self.data(seed),
                    method=cell.method,  # type: ignore[arg-type]  # one of its literals
                    scope=cell.scope,
                    sparsity=[one.sparsity for one in group],
                    images=CALIBRATION,
                    seed=seed,
                )
        return path

    def measure(self, cell: Cell, group: list[Cell], seed: int) -> dict[str, Any]:
        """Prune, measure, fine-tune, measure."""
        start = perf_counter()
        path = self.pruned(cell, group, seed)
        before = self.accuracy(path)
        run = self.out / "fits" / self.unit(cell, seed).stem
        words = [
            *("fit", f"--config={RECIPE}", f"--dir={run}", "--ckpt_path=last", f"--seed_everything={seed}"),
            *(f"--model.backbone.weights={path}", f"--data.root={self.root}", f"--data.seed={seed}"),
            *(f"--data.limit={self.images // 10}", "--trainer.limit_val_batches=0", "--checkpoint.monitor=null"),
            *("--trainer.enable_progress_bar=false", "--trainer.num_sanity_val_steps=0", "--trainer.devices=1"),
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main(words)
        after = self.accuracy(run / "pruned.safetensors")
        achieved = read_protocol(run / "pruned.safetensors")["achieved"]["total"]
        shutil.rmtree(run)
        seconds = round(perf_counter() - start, 1)
        return {**self.key(cell, seed), "before": before, "after": after, "achieved": achieved, "seconds": seconds}


def run(experiment: Experiment, seeds: int) -> None:
    """Measure what is missing, one seed after another, so that a table of fewer seeds is complete early."""
    (experiment.out / "units").mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for group in GROUPS:
            for cell in group:
                path = experiment.unit(cell, seed)
                if path.exists():
                    continue
                measured = experiment.measure(cell, group, seed)
                with atomic_write(path) as file:
                    file.write(json.dumps(measured, indent=1).encode())
                shown = {name: measured[name] for name in ("before", "after", "seconds")}
                print(f"seed {seed} {cell.method} {cell.scope} {cell.sparsity}: {shown}", flush=True)


def table(experiment: Experiment, seeds: int) -> Iterator[str]:
    """Yield the lines of a markdown table of all units that there are."""
    yield "| method | scope | zeros | before | after 2 epochs | seeds |"
    yield "|---|---|---|---|---|---|"
    for group in GROUPS:
        for cell in group:
            files = [experiment.unit(cell, seed) for seed in range(seeds)]
            units = [json.loads(file.read_text()) for file in files if file.exists()]
            if units:
                name = cell.method if cell.sparsity else "dense"
                before, after = (spread([unit[when] for unit in units]) for when in ("before", "after"))
                scope = cell.scope if cell.sparsity else "-"
                yield f"| {name} | {scope} | {units[0]['achieved']:.1%} | {before} | {after} | {len(units)} |"


def spread(values: list[float]) -> str:
    """Return mean and half-width of Student's 95 % interval, in percent."""
    n = len(values)
    if n < 2:
        return f"{100 * values[0]:.1f}"
    return f"{100 * mean(values):.1f} ± {100 * STUDENT[n] * stdev(values) / n**0.5:.1f}"


def main() -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore", ".*LightningCLI's args parameter.*")  # this script has arguments of its own
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="class folders of CIFAR-10, with train/ and test/")
    parser.add_argument("--weights", type=Path, required=True, help="the dense classifier")
    parser.add_argument("--out", type=Path, required=True, help="folder of the units")
    parser.add_argument("--images", type=int, default=45000, help="training images of an epoch; a part makes it faster")
    parser.add_argument("--test-images", type=int, default=10000, help="test images")
    parser.add_argument("--seeds", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--show", action="store_true", help="print the table of the units that there are, and end")
    options = vars(parser.parse_args())
    show, seeds = options.pop("show"), options.pop("seeds")
    experiment = Experiment(**options)
    if experiment.images % 10 or experiment.test_images % 10:
        raise UserError("--images and --test-images are divided among 10 classes")
    if not show:
        run(experiment, seeds)
    print(f"{experiment.images:,} training images an epoch, {experiment.test_images:,} test images\n")
    print("\n".join(table(experiment, seeds)))


if __name__ == "__main__":
    main()
