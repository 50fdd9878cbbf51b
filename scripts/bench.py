"""Benchmarks: every hot path beside the arithmetic or the bytes that it cannot avoid, measured in the same run.

    python scripts/bench.py NAME [--json] [--OPTION VALUE ...]

`--json` prints one JSON object with at least `name`, a figure, its floor, their `ratio` and the `setup`; where a
benchmark has several parts, they stand in a list under `parts` and the object's own figure is the first one's.
"""

import argparse
import inspect
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_activations import extract_speed, shards
from bench_circuits import circuit
from bench_curves import curves
from bench_images import images
from bench_neurons import selectivity
from bench_relevance import relevance
from bench_sae import sae, together
from bench_scenes import scenes
from bench_sparsity import sparse_train, wanda
from bench_taps import taps

BENCHMARKS: dict[str, Callable[..., Mapping[str, Any] | Sequence[Mapping[str, Any]]]] = {
    "taps": taps,
    "images": images,
    "scenes": scenes,
    "extract": extract_speed,
    "shards": shards,
    "sae": sae,
    "together": together,
    "selectivity": selectivity,
    "circuit": circuit,
    "curves": curves,
    "relevance": relevance,
    "wanda": wanda,
    "sparse-train": sparse_train,
}


def machine() -> dict[str, Any]:
    """Return what a figure depends on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "gpu": gpu, "torch": torch.__version__, "python": platform.python_version()}


def main() -> None:
    """Run one benchmark; its options are the arguments of its function."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="name", required=True)
    for name, function in BENCHMARKS.items():
        verb = verbs.add_parser(name, help=(inspect.getdoc(function) or "").split("\n")[0])
        verb.add_argument("--json", action="store_true", help="print one JSON object")
        for option in inspect.signature(function).parameters.values():
            kind = type(option.default) if option.default is not None else str
            verb.add_argument(f"--{option.name.replace('_', '-')}", type=kind, default=option.default)
    options = vars(parser.parse_args())
    name, as_json = options.pop("name"), options.pop("json")
    measured = BENCHMARKS[name](**options)
    measured = [measured] if isinstance(measured, Mapping) else measured
    parts = [{**part, "setup": {**machine(), **part.get("setup", {})}} for part in measured]
    if as_json:
        print(json.dumps({**parts[0], **({"parts": parts} if len(parts) > 1 else {})}))
        return
    for part in parts:
        figures = {key: value for key, value in part.items() if isinstance(value, int | float)}
        print(part["name"].ljust(40), "  ".join(f"{key} {value:,.3f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
