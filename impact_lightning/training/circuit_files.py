"""Circuits in files: masks of all, and of each a graph, a picture, and the top images of its nodes."""

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save
from torch import Tensor

from impact_lightning.circuits.edges import wiring
from impact_lightning.circuits.findings import ModelCircuits
from impact_lightning.circuits.graph import circuit_graph, write_json, write_tables
from impact_lightning.circuits.learner import Circuit, Learner
from impact_lightning.circuits.lit_circuit import LitCircuit
from impact_lightning.circuits.picture import draw_circuit
from impact_lightning.circuits.tops import FILE as TOPS
from impact_lightning.circuits.tops import Wanted, find_tops, report_rows, write_tops
from impact_lightning.data.thumbnail_file import FILE as THUMBNAILS
from impact_lightning.data.thumbnail_file import foremost, write_thumbnails
from impact_lightning.files import atomic_write
from impact_lightning.training.rehearsal import is_rehearsal

EDGES = 10_000  # in a graph: of a larger circuit the heaviest ones, for more are no reading matter


class CircuitFiles(Callback):
    """Write the circuits of a test into `circuits/` of the run."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write masks, graphs and pictures."""
        if not isinstance(pl_module, LitCircuit) or not trainer.is_global_zero or is_rehearsal(trainer):
            return
        folder, empty, cut = Path(trainer.default_root_dir) / "circuits", 0, 0
        unfinished = folder.with_name("circuits.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        for found in pl_module.found:
            drawn = _write(unfinished / found.model, found, pl_module.learner(found.model))
            empty += len(found.validated) - len(drawn)
            cut += sum(one.cut for one in drawn.values())
            _write_tops(unfinished / found.model, found, pl_module, drawn)
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier test, perhaps of other tasks
        unfinished.rename(folder)
        print(f"masks, graphs, pictures and top images of circuits: {folder}")
        if empty:
            print(f"  {empty} circuits are empty: no graph of them is written")
        if cut:
            print(f"  {cut} circuits have more than {EDGES:,} edges: their graphs hold the {EDGES:,} heaviest")


class _Drawn(NamedTuple):
    """A circuit that has a graph."""

    place: Path
    ids: Tensor  # (k,) int64, nodes of the graph in ascending order
    cut: bool  # whether the graph is a part of it


def _write(folder: Path, found: ModelCircuits, learner: Learner) -> dict[int, _Drawn]:
    """Write the circuits of a model, and return those that have a graph: all that are not empty."""
    names = [f"{task}, seed {seed}" for task, seed in zip(found.tasks, found.seeds, strict=True)]
    masks = torch.stack([one.mask for one in found.validated])
    about = {"circuits": json.dumps(names), "nodes": str(learner.nodes), "weights": learner.weights}
    with atomic_write(folder / "masks.safetensors") as file:
        file.write(save({"masks": masks}, metadata=about))
    wires, drawn = wiring(learner.model, learner.nodes), dict[int, _Drawn]()
    for p, (name, mask) in enumerate(zip(names, masks, strict=True)):
        if not mask.any():
            continue
        graph, place = circuit_graph(learner.model, wires, mask, most=EDGES), folder / f"{p:03d}-{file_name(name)}"
        write_json(place / "circuit.json", graph)
        write_tables(place, graph)
        with atomic_write(place / "circuit.svg") as file:
            draw_circuit(file, graph, title=name)
        drawn[p] = _Drawn(place, torch.tensor([node.id for node in graph.nodes]), graph.whole is not None)
    return drawn


def _write_tops(folder: Path, found: ModelCircuits, module: LitCircuit, drawn: dict[int, _Drawn]) -> None:
    """Write the top images of the nodes of some circuits, and pictures of these images.

    Circuits of the same images are looked at in one pass, and written before the next: memory holds no others.
    """
    if not drawn:
        return
    data, learner, constants = module.data, module.learner(found.model), module.constants(found.model)
    images, rows = data.images["report"], report_rows(data)
    of_images: dict[tuple[int, ...], list[int]] = {}
    for p in drawn:
        of_images.setdefault(tuple(images.images[found.validated[p].task].rows.tolist()), []).append(p)
    shown: list[Tensor] = []
    for places, circuits in of_images.items():
        wanted = [Wanted(drawn[p].ids, _constants(found, learner, constants, p)) for p in circuits]
        tops = find_tops(learner.model, learner.nodes, images.__getitem__, torch.tensor(places), wanted)
        for p, one in zip(circuits, tops, strict=True):
            write_tops(drawn[p].place / TOPS, one, rows)
            shown.append(rows[one.places])
    write_thumbnails(folder / THUMBNAILS, data.data, foremost(shown))


def _constants(found: ModelCircuits, learner: Learner, constants: Tensor, p: int) -> Tensor:
    """Return the constants that a circuit was tested with, `(1 or T, n)`."""
    if constants.ndim < 3:
        return constants
    return constants[learner.circuits.index(Circuit(found.validated[p].task, found.seeds[p]))]  # learnt: its own


def file_name(name: str) -> str:
    """Return a name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60]
