"""Draw accuracy against sparsity, out of the units that `pruning_table.py` and `sparse_training_table.py` have left.

    python scripts/sparsity_curve.py --pruning FOLDER [--training FOLDER] --out FILE.svg

Points are means over the seeds, bars Student's 95 % intervals.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from sparsity_study import half_width

COLOURS = {  # Okabe and Ito: told apart by the colour-blind
    "random": "#999999",
    "magnitude": "#E69F00",
    "wanda": "#0072B2",
    "sparsegpt": "#009E73",
    "weight-sparse": "#D55E00",
    "gradual pruning": "#CC79A7",
}
Points = dict[tuple[str, str], dict[float, list[float]]]  # accuracies by method and scope, then by share of zeros


def read_units(folder: Path) -> list[dict[str, Any]]:
    """Return all units of a table."""
    return [json.loads(path.read_text()) for path in sorted((folder / "units").glob("*.json"))]


def pruned_points(units: list[dict[str, Any]], when: str) -> tuple[Points, list[float]]:
    """Return the points of a pruning table before or after fine-tuning, and the accuracies of the dense model."""
    points: Points = defaultdict(lambda: defaultdict(list))
    dense = [unit[when] for unit in units if not unit["sparsity"]]
    for unit in units:
        if unit["sparsity"]:
            points[unit["method"], unit["scope"]][round(unit["achieved"], 3)].append(unit[when])
    return points, dense


def trained_points(units: list[dict[str, Any]]) -> Points:
    """Return the points of trainings: of several learning rates that with most seeds, then the best in validation."""
    cells: dict[tuple[str, float], dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for unit in units:
        cells[unit["method"], unit["density"]][unit["lr"]].append(unit)
    points: Points = defaultdict(lambda: defaultdict(list))
    for (method, density), rates in cells.items():
        if density < 1:
            best = max(rates.values(), key=lambda several: (len(several), several[0].get("val", 0.0)))
            points[method, ""][round(1 - mean(unit["nonzero"] for unit in best), 3)] = [unit["top1"] for unit in best]
    return points


def draw(axes: Axes, points: Points) -> None:
    """Draw a line for each method, and a diamond for each N:M pattern."""
    for (method, scope), by_share in sorted(points.items()):
        shares = sorted(by_share)
        heights = [100 * mean(by_share[share]) for share in shares]
        bars = [100 * half_width(by_share[share]) for share in shares]
        style = "D" if ":" in scope else "o--" if not scope else "o-"
        label = f"{method} {scope}".strip()
        axes.errorbar(shares, heights, bars, fmt=style, color=COLOURS[method], label=label, ms=4, capsize=2, lw=1.2)


def main() -> None:
    """Read and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruning", type=Path, required=True, help="the --out of pruning_table.py")
    parser.add_argument("--training", type=Path, help="the --out of sparse_training_table.py")
    parser.add_argument("--out", type=Path, required=True, help="picture, .svg or .png")
    given = parser.parse_args()
    units = read_units(given.pruning)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axes, when, title in ((left, "before", "pruned"), (right, "after", "and fine-tuned for two epochs")):
        points, dense = pruned_points(units, when)
        draw(axes, points)
        axes.axhline(100 * mean(dense), color="black", lw=0.8, ls=":", label="dense")
        axes.set(title=title, xlabel="share of zeros", xlim=(0.25, 1))
        axes.spines[["top", "right"]].set_visible(False)
    if given.training:
        draw(right, trained_points(read_units(given.training)))
    left.set(ylabel="top-1, %", ylim=(0, 101))  # what lies beyond is a bar of few seeds, not an accuracy
    right.set_ylim(max(0.0, right.get_ylim()[0]), 101)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=130)


if __name__ == "__main__":
    main()
