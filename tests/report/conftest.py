"""A run in a folder: small files of every level, written as the real ones are, and the outcome that names them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from impact_lightning.circuits.graph import CircuitGraph, Edge, Link, Node, write_json, write_tables
from impact_lightning.data import thumbnail_file
from impact_lightning.files import write_csv
from impact_lightning.results import Record
from impact_lightning.sae.features import Description, Features, write_features
from impact_lightning.suite.outcome import FILE, Entry, Model, Outcome, Unit, write_outcome

NAMES = ["cube", "<script>alert(1)</script>", '"quotes" & more', "sphere"]
MODELS = ["dense", "wanda70"]
DICTIONARY = "blocks.1.resid_post/0-TopK-x2-s0"
DATA = "feed5eed"  # fingerprint of the images
SIDE, PATCHES, IMAGES, TOP = 16, 4, 24, 4
LATENTS = 60
CONSTANT = -0.5  # what replaces nodes


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run; who changes files in it copies it."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder


@pytest.fixture(scope="session")
def outcome() -> Outcome:
    """Return the outcome of that run."""
    return make_outcome()


def write_run(folder: Path) -> None:
    """Write the files of a run."""
    for seed, model in enumerate(MODELS):
        write_dictionary(folder / "sae" / model / "test" / "features" / DICTIONARY, seed)
    for model in MODELS:
        write_circuits(folder / "circuits" / "test" / "circuits" / model)
        write_neurons(folder / "neurons" / "neurons" / "models" / model)
        write_pictures(folder / "neurons" / "neurons" / "thumbnails.safetensors")
        write_maps(folder / "attribution" / "attribution" / model)
    write_outcome(folder / FILE, make_outcome())


def make_outcome() -> Outcome:
    """Return an outcome whose units have the files of `write_run`."""
    units = [unit(f"sae/{model}/test", "sae", [model], f"sae/{model}/test") for model in MODELS]
    units += [unit("circuits", "circuits", MODELS, "circuits/test"), unit("neurons", "neurons", MODELS, "neurons")]
    units += [
        unit("attribution", "attribution", MODELS, "attribution"),
        unit("dense/test", "", ["dense"], "models/dense"),
    ]
    return Outcome(
        version="0.1",
        title="A run & its <report>",
        configuration={"seed": 0},
        models=[Model(name, name, "trained", 0, MODELS[0], 0.0, "00ff", 0.9) for name in MODELS],
        units=units,
        verdicts=[],
        planted=[],
        entries=[Entry("", "dense/test", Record("top1", 1, 0.75, 6, 0, {}, "00ff", DATA, of=NAMES[1]))],
    )


def unit(name: str, level: str, models: list[str], folder: str) -> Unit:
    """Return a test that is done."""
    return Unit(name, level, models, "test", folder, "f" * 16, [], "done")


# ------------------------------------------------------------------------------------------------------------- pictures


def write_pictures(path: Path) -> None:
    """Write thumbnails of all images: those of a class have a colour."""
    colours = torch.tensor([[200, 60, 60], [60, 160, 60], [60, 60, 200], [190, 170, 40]], dtype=torch.uint8)
    labels = [row % len(NAMES) for row in range(IMAGES)]
    images = colours[labels][:, None, None].repeat(1, SIDE, SIDE, 1)
    for row in range(IMAGES):
        images[row, row % SIDE, :] = 255
    about = {
        "schema": thumbnail_file.SCHEMA,
        "data": DATA,
        "split": "test",
        "labels": labels,
        "names": [f"/data/test/{row % len(NAMES)}/{row:04d}.png" for row in range(IMAGES)],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"rows": torch.arange(IMAGES), "images": images}, path, {"about": json.dumps(about)})


# ------------------------------------------------------------------------------------------------------------- features


def make_features(seed: int, n: int = LATENTS, patches: int = PATCHES) -> Features:
    """Return features in which latent 0 is dead, and the others have the label of their number modulo 4."""
    draws = torch.Generator().manual_seed(seed)
    number, t = torch.arange(n), patches**2 + 1
    label = number % len(NAMES)
    image = (label[:, None] + len(NAMES) * torch.arange(TOP)) % IMAGES
    shares = torch.rand(n, generator=draws, dtype=torch.float64)
    value = torch.linspace(4, 1, TOP, dtype=torch.float64).repeat(n, 1) * (1 + shares[:, None])
    counts = torch.zeros(n, len(NAMES), dtype=torch.int64)
    counts[number, label] = 1 + number % 6
    return Features(
        density=torch.where(number == 0, 0.0, 0.001 + 0.1 * shares),
        value=value,
        image=image,
        token=torch.ones_like(image),
        map=torch.rand(n, TOP, t, generator=draws).half(),
        active=torch.tensor([5, 9, 2]),
        class_counts=counts,
        class_images=torch.full((len(NAMES),), IMAGES // len(NAMES)),
        purity=torch.where(number < 5, math.nan, 0.2 + 0.8 * shares.flip(0)),
        entropy=1 - shares,
        label=label,
        same_label=shares.roll(1),
        alike=torch.full((n,), math.nan, dtype=torch.float64),
        neighbour=torch.stack([(number + 1) % n, torch.zeros_like(number)], 1),
        neighbour_cosine=torch.tensor([0.5, 0.25]).repeat(n, 1),
        lens_class=torch.stack([label, (label + 1) % len(NAMES)], 1),
        lens_logit=torch.ones(n, 2),
    )


def make_description(patches: int = PATCHES) -> Description:
    """Return what the features are of: all tokens, the first of which is no patch."""
    tokens = list(range(patches**2 + 1))
    return Description(
        DICTIONARY, "blocks.1.resid_post", None, NAMES, tokens, 1, "activations of the images", "00ff", {}
    )


def write_dictionary(folder: Path, seed: int) -> None:
    """Write what is known of a dictionary."""
    write_features(folder, make_features(seed), make_description())
    write_csv(folder / "features.csv", [["latent"]])
    write_pictures(folder / "thumbnails.safetensors")


# ------------------------------------------------------------------------------------------------------------- circuits


def make_graph(width: int = 3) -> CircuitGraph:
    """Return a circuit of two blocks: what an MLP writes in the first one is read by that of the second one."""
    sites = ("attn_in", "v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")
    places = [(block, site) for block in (0, 1) for site in sites]
    nodes = [
        Node(100 * place + channel, block, site, channel, "<b>bold</b>" if place + channel == 0 else "", {"score": 0.5})
        for place, (block, site) in enumerate(places)
        for channel in range(width)
    ]
    edges = [
        Edge(100 * place + a, 100 * (place + 1) + b, (0.1 + place + a) * (-1) ** (a + b), f"blocks.{block}.matrix")
        for place, (block, site) in enumerate(places)
        if not site.endswith("_out")
        for a in range(width)
        for b in range(width)
    ]
    return CircuitGraph(tuple(nodes), tuple(edges), (Link(500, 600), Link(501, 901)), ())


def write_circuits(folder: Path) -> None:
    """Write two circuits of a model, one of them of a class with an awkward name."""
    tasks = ["cube or not, seed 0", f"{NAMES[1]} or not, seed 0"]
    for number, name in enumerate(["000-cube-or-not-seed-0", "001-script-alert-1-script-or-not-seed-0"]):
        graph = make_graph(3 - number)
        write_json(folder / name / "circuit.json", graph)
        write_tables(folder / name, graph)
        tops = {
            "nodes": {str(node.id): make_tops(node.id) for node in graph.nodes},
            "constants": {str(node.id): CONSTANT for node in graph.nodes},
            "grid": [PATCHES, PATCHES],
        }
        (folder / name / "tops.json").write_text(json.dumps(tops))
    save_file(
        {"masks": torch.ones(2, 4, dtype=torch.bool)}, folder / "masks.safetensors", {"circuits": json.dumps(tasks)}
    )
    write_pictures(folder / "thumbnails.safetensors")


def make_tops(seed: int) -> list[dict[str, object]]:
    """Return the top images of a node."""
    maps = np.random.default_rng(seed).normal(size=(TOP, PATCHES**2))
    return [
        {"row": (seed + place) % IMAGES, "value": 3.0 - place, "map": values.round(3).tolist()}
        for place, values in enumerate(maps)
    ]


# --------------------------------------------------------------------------------------------- neurons and attribution


def write_neurons(folder: Path) -> None:
    """Write a table of units and one of classes."""
    rows: list[list[object]] = [
        ["layer", "unit", "preferred_class", "auroc_class", "auroc_best", "class_selectivity", "density"]
    ]
    for number in range(40):
        name = NAMES[number % len(NAMES)]
        auroc = "" if number == 39 else 0.5 + number / 100
        rows.append(["blocks.1.neurons", number, name if number % 3 else "", name, auroc, 0.25, 1.0])
    write_csv(folder / "units.csv", rows)
    top = torch.tensor([[number % len(NAMES), number % len(NAMES) + 4, -1] for number in range(40)])
    about = {"layers": json.dumps(["blocks.1.neurons"]), "first_units": json.dumps([0])}
    save_file({"top_images": top, "auroc": torch.zeros(len(NAMES), 40)}, folder / "units.safetensors", about)
    write_csv(
        folder / "classes.csv", [["layer", "class", "images"], *(["blocks.1.neurons", name, 6] for name in NAMES)]
    )


def write_maps(folder: Path) -> None:
    """Write attribution maps of eight images by two methods."""
    draws = torch.Generator().manual_seed(0)
    methods = ("grad_cam", "rollout")
    maps = {f"{row}/{method}": torch.randn(PATCHES, PATCHES, generator=draws) for row in range(8) for method in methods}
    folder.mkdir(parents=True)
    save_file(maps, folder / "maps.safetensors")
    write_csv(folder / "scores.csv", [["row", "method"]])
    write_pictures(folder / "thumbnails.safetensors")
