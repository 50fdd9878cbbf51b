"""Circuits in files: masks of all, and of each a graph and a picture."""

import json
import re
import shutil
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save

from impact_lightning.circuits.edges import wiring
from impact_lightning.circuits.findings import ModelCircuits
from impact_lightning.circuits.graph import circuit_graph, write_json, write_tables
from impact_lightning.circuits.learner import Learner
from impact_lightning.circuits.lit_circuit import LitCircuit
from impact_lightning.circuits.picture import draw_circuit
from impact_lightning.files import atomic_write
from impact_lightning.training.rehearsal import is_rehearsal

EDGES = 20_000  # of a circuit whose graph is written: more are no reading matter


class CircuitFiles(Callback):
    """Write the circuits of a test into `circuits/` of the run."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write masks, graphs and pictures."""
        if not isinstance(pl_module, LitCircuit) or not trainer.is_global_zero or is_rehearsal(trainer):
            return
        folder, skipped = Path(trainer.default_root_dir) / "circuits", 0
        unfinished = folder.with_name("circuits.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        for found in pl_module.found:
            skipped += _write(unfinished / found.model, found, pl_module.learner(found.model))
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier test, perhaps of other tasks
        unfinished.rename(folder)
        print(f"masks, graphs and pictures of circuits: {folder}")
        if skipped:
            print(f"  {skipped} circuits are empty or have more than {EDGES:,} edges: no graph of them is written")


def _write(folder: Path, found: ModelCircuits, learner: Learner) -> int:
    """Write the circuits of a model, and return how many have no graph."""
    names = [f"{task}, seed {seed}" for task, seed in zip(found.tasks, found.seeds, strict=True)]
    masks = torch.stack([one.mask for one in found.validated])
    about = {"circuits": json.dumps(names), "nodes": str(learner.nodes), "weights": learner.weights}
    with atomic_write(folder / "masks.safetensors") as file:
        file.write(save({"masks": masks}, metadata=about))
    wires, skipped = wiring(learner.model, learner.nodes), 0
    for p, (name, mask) in enumerate(zip(names, masks, strict=True)):
        if not mask.any() or int(found.counts.edges[p]) > EDGES:
            skipped += 1
            continue
        graph, place = circuit_graph(learner.model, wires, mask), folder / f"{p:03d}-{file_name(name)}"
        write_json(place / "circuit.json", graph)
        write_tables(place, graph)
        with atomic_write(place / "circuit.svg") as file:
            draw_circuit(file, graph, title=name)
    return skipped


def file_name(name: str) -> str:
    """Return a name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60]
