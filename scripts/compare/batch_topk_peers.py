"""Our BatchTopK beside dictionary_learning's: the same batches in the same order, the same budget, held-out tokens.

Each library is trained at every learning rate with the first seed; the rate with the lowest FVU on validation tokens
then serves the other seeds. What is reported is of the test split.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import mean, stdev

import torch
from peer import Schedule, train
from torch import Tensor

from impact_lightning.activations import CachedActivations
from impact_lightning.metrics.density import FiringDensity
from impact_lightning.metrics.fvu import FVU
from impact_lightning.metrics.l0 import L0
from impact_lightning.sae import BatchTopK
from impact_lightning.sae.folded import FoldedSAE
from impact_lightning.sae.saelens import read_saelens
from impact_lightning.sae.threshold import calibrate

HERE = Path(__file__).parent
SITE = "blocks.4.resid_post"
WIDTH, LATENTS, K, BATCH = 128, 1024, 16, 1024  # as in fit.yaml
COURSES = (Schedule("its own schedule", 1000, 0), Schedule("our schedule", 200, 0.2))
Trained = tuple[dict[str, FoldedSAE], float]  # a dictionary for each way to set the threshold; seconds of a step


@dataclass(frozen=True)
class Row:
    """One trained dictionary on one split."""

    library: str
    threshold: str
    split: str
    rate: float
    seed: int
    fvu: float
    l0: float
    dead: float
    seconds: float


def main() -> None:
    """Read the arguments, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="CIFAR-10 as class folders under train and test")
    parser.add_argument("--weights", required=True, help="weights of the classifier")
    parser.add_argument("--out", type=Path, required=True, help="folder for shards, runs and results.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 8e-4, 2e-3, 5e-3])
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    if given.steps <= COURSES[0].warmup_steps:
        parser.error("--steps: the peer warms up for 1000 steps, and only then begins to follow its threshold")
    data = activations(given.root, given.weights, given.out / "shards")

    def ours(rate: float, seed: int) -> Trained:
        return fit(given.out, rate, seed, given.steps)

    def theirs(course: Schedule) -> Callable[[float, int], Trained]:
        def run(rate: float, seed: int) -> Trained:
            batches = islice(stream(data), given.steps)
            shape = {"steps": given.steps, "width": WIDTH, "latents": LATENTS, "k": K}
            sae, seconds = train(batches, **shape, rate=rate, seed=seed, course=course)
            return {"its own": sae, "calibrated": calibrated(sae, data)}, seconds

        return run

    rows = tuned("impact_lightning", ours, given.rates, given.seeds, data)
    for course in COURSES:
        rows += tuned(f"dictionary_learning, {course.name}", theirs(course), given.rates, given.seeds, data)
    (given.out / "results.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(rows))


def activations(root: str, weights: str, out: Path) -> CachedActivations:
    """Return the three splits; what is there already is kept."""
    for split in ("train", "val", "test"):
        where = [f"--data.root={root}", f"--backbone.weights={weights}", f"--split={split}", f"--out={out / split}"]
        impact("extract", f"--config={HERE / 'extract.yaml'}", *where)
    return CachedActivations(out / "train", out / "val", out / "test", batch_size=BATCH)


def impact(*words: str) -> None:
    """Run our command line."""
    subprocess.run([sys.executable, "-m", "impact_lightning", *words], check=True)


def stream(data: CachedActivations) -> Iterator[Tensor]:
    """Yield the training batches `(B, D)` that a fit reads, in its order."""
    loader = CachedActivations(data.shards["train"].root, batch_size=BATCH).train_dataloader()
    while True:
        for batch in loader:
            yield batch.activations[SITE]


def fit(out: Path, rate: float, seed: int, steps: int) -> Trained:
    """Train with our command line and read what it exports."""
    run = out / f"runs/{rate:g}-{seed}"
    shards = [f"--data.{split}={out / 'shards' / split}" for split in ("train", "val", "test")]
    length = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    model = [f"--model.lr={rate}", f"--model.seeds=[{seed}]"]
    impact("fit", f"--config={HERE / 'fit.yaml'}", f"--dir={run}", "--ckpt_path=last", *shards, *length, *model)
    impact("export", str(run / "checkpoints/last.ckpt"), f"--out={run / 'export'}")
    (config,) = (run / "export").glob("*/*/cfg.json")
    return {"calibrated": read_saelens(config.parent)}, seconds_of_step(run)


def seconds_of_step(run: Path) -> float:
    """Return what the log of a fit says last."""
    with next((run / "logs").glob("*/metrics.csv")).open() as file:
        return (
            BATCH / [float(row["train/tokens_per_s"]) for row in csv.DictReader(file) if row["train/tokens_per_s"]][-1]
        )


def calibrated(sae: FoldedSAE, data: CachedActivations) -> FoldedSAE:
    """Return a dictionary with the threshold that our calibration sets on the validation tokens, as in a fit."""
    module = BatchTopK(WIDTH, LATENTS, k=K)
    with torch.no_grad():
        for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
            getattr(module, name).copy_(getattr(sae, name))
    (found,) = calibrate([module], lambda: ([x] for x in held_out(data, "val")))
    return replace(sae, threshold=torch.full((LATENTS,), found.theta))


def held_out(data: CachedActivations, split: str) -> Iterator[Tensor]:
    """Yield all rows of a split, `(N, D)` at a time."""
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    for batch in loader:
        yield batch.activations[SITE]


def tuned(
    library: str,
    run: Callable[[float, int], Trained],
    rates: Iterable[float],
    seeds: list[int],
    data: CachedActivations,
) -> list[Row]:
    """Return measurements at every rate with the first seed, and at the best one with all seeds."""
    rows: list[Row] = []

    def add(rate: float, seed: int) -> None:
        dictionaries, seconds = run(rate, seed)
        for threshold, sae in dictionaries.items():
            for split in ("val", "test") if threshold == "calibrated" else ("test",):
                rows.append(Row(library, threshold, split, rate, seed, *measured(sae, held_out(data, split)), seconds))
                print(rows[-1], flush=True)

    for rate in rates:
        add(rate, seeds[0])
    best = min((row for row in rows if row.split == "val"), key=lambda row: row.fvu)
    for seed in seeds[1:]:
        add(best.rate, seed)
    return rows


def measured(sae: FoldedSAE, batches: Iterable[Tensor]) -> tuple[float, float, float]:
    """Return pooled FVU, L0, and the share of latents that never fired, of raw activations as inference sees them."""
    fvu, l0, density = FVU(WIDTH), L0(LATENTS), FiringDensity(LATENTS)
    for x in batches:
        codes = sae.encode(x)
        fvu.update(x, sae.decode(codes))
        l0.update(codes)
        density.update(codes)
    return float(fvu.compute()["fvu"]), float(l0.compute()["l0"]), float(density.compute().dead)


def table(rows: list[Row]) -> str:
    """Return the measurements on test tokens; several seeds make one line with their standard deviation."""
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        if row.split == "test":
            groups.setdefault((row.library, row.threshold, row.rate), []).append(row)
    lines = ["| library | threshold | lr | seeds | FVU | L0 | dead | ms a step |", "|---|---|---|---|---|---|---|---|"]
    for (library, threshold, rate), some in groups.items():
        fvus = [row.fvu for row in some]
        spread = f" ± {stdev(fvus):.4f}" if len(fvus) > 1 else ""
        l0, dead, seconds = (mean(getattr(row, name) for row in some) for name in ("l0", "dead", "seconds"))
        lines.append(
            f"| {library} | {threshold} | {rate:g} | {len(some)} | {mean(fvus):.4f}{spread} | {l0:.2f} | {dead:.1%} "
            f"| {seconds * 1e3:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
