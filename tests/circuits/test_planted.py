"""Circuits that were planted are found, node by node and edge by edge, and none is found where there is none.

The class of an image is whether its first patch is red or blue. A head copies the colour of that patch, which it knows
by its place, to all tokens; a neuron thresholds it; in a model of two steps a second head and a second neuron pass it
on. All else is distraction: a second head, and neurons, that read and write other channels, and patches of any colour.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from impact_lightning.backbones import Backbone
from impact_lightning.circuits.controls import permute_weights
from impact_lightning.circuits.edges import count_edges, wiring
from impact_lightning.circuits.live import live_nodes
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.verdict import PASSED
from impact_lightning.cli import main
from impact_lightning.results import Record, read_results

WIDTH, DISTRACTORS = 16, range(8, 15)
CONSTANT, MARKER = 15, 7  # channels: one that keeps norms steady, one that tells the first patch from others
NODES = {  # in the first block colour -> 1 -> 2, in the second 2 -> 3 -> 4
    1: {"attn_in": [0, MARKER], "k": [0], "v": [0], "attn_out": [1], "mlp_in": [1], "mlp_neuron": [0], "mlp_out": [2]},
    2: {"attn_in": [2], "v": [0], "attn_out": [3], "mlp_in": [3], "mlp_neuron": [0], "mlp_out": [4]},
}
EDGES = {1: 5, 2: 9}


def shape(depth: int) -> dict[str, Any]:
    return {
        **{"img_size": 16, "patch_size": 8, "embed_dim": WIDTH, "depth": depth, "num_heads": 2, "mlp_ratio": 2},
        "norm_layer": "rmsnorm",
    }


def build(depth: int) -> Any:
    """Return the planted model."""
    torch.manual_seed(0)
    model: Any = Backbone("vit_tiny_patch16_224", model_args=shape(depth), num_classes=2).build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        red, blue = model.patch_embed.proj.weight[0, 0], model.patch_embed.proj.weight[0, 2]
        red += 1 / red.numel()
        blue -= 1 / blue.numel()
        model.patch_embed.proj.weight[DISTRACTORS] = 0.03 * torch.randn(7, 3, 8, 8)
        model.pos_embed[..., CONSTANT] = 8.0
        model.pos_embed[:, 1, MARKER] = 4.0  # behind the class token
        for i, block in enumerate(model.blocks):
            _distract(block)
            read, write = (0, 1) if i == 0 else (2, 3)
            if i == 0:
                block.attn.qkv.bias[0] = 4.0  # q
                block.attn.qkv.weight[WIDTH, MARKER] = 10.0  # k
            block.attn.qkv.weight[2 * WIDTH, read] = 4.0  # v
            block.attn.proj.weight[write, 0] = 1.0
            block.mlp.fc1.weight[0, write] = 4.0
            block.mlp.fc2.weight[write + 1, 0] = 1.0
            block.mlp.fc2.bias[write + 1] = -3.0
        model.head.weight[1, 2 * depth], model.head.weight[0, 2 * depth] = 4.0, -4.0
    return model


def _distract(block: nn.Module) -> None:
    """Give a block a head and neurons that read and write channels of their own."""
    attn: Any = block.attn
    mlp: Any = block.mlp
    at = torch.tensor(DISTRACTORS)
    head = torch.arange(8, 16)  # the second
    for part in range(3):
        attn.qkv.weight[(part * WIDTH + head)[:, None], at] = 0.5 * torch.randn(8, 7)
    attn.proj.weight[at[:, None], head] = 0.3 * torch.randn(7, 8)
    neurons = torch.arange(4, 32)
    mlp.fc1.weight[neurons[:, None], at] = 0.5 * torch.randn(28, 7)
    mlp.fc2.weight[at[:, None], neurons] = 0.2 * torch.randn(7, 28)


def planted(nodes: Nodes, depth: int) -> Tensor:
    """Return the nodes that were planted, bool `(n,)`."""
    mask = torch.zeros(nodes.n, dtype=torch.bool)
    for block in range(depth):
        for name, channels in NODES[block + 1].items():
            mask[[nodes.site(block, name).start + c for c in channels]] = True
    return mask


def draw_patches(root: Path, n: int, seed: int) -> None:
    """Write images of four patches, each red or blue and somewhat noisy; the first is that of the class."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(("blue", "red")):
        (root / name).mkdir(parents=True)
        for number in range(n):
            is_red = generator.integers(0, 2, (2, 2))
            is_red[0, 0] = label
            colours = np.where(is_red[..., None] == 1, [220, 90, 35], [35, 90, 220])
            pixels = colours.repeat(8, 0).repeat(8, 1) + generator.integers(-30, 31, (16, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("patches")
    for seed, split in enumerate(("train", "test")):
        draw_patches(root / split, 100, seed)
    return root


def found(
    run: Path, patches: Path, depth: int, *more: str, steps: int = 300, permuted: bool = False
) -> dict[tuple[str, str], Record]:
    """Fit and test circuits of a planted model, and return the records."""
    model = build(depth)
    if permuted:
        permute_weights(model, 0)
    save_file(model.state_dict(), run / "planted.safetensors")
    backbone = {
        "name": "vit_tiny_patch16_224",
        "model_args": shape(depth),
        "weights": str(run / "planted.safetensors"),
    }
    words = [
        *(f"--dir={run / 'run'}", "--model=LitCircuit", f"--model.models={json.dumps({'planted': backbone})}"),
        *("--model.mean_images=200", "--model.permuted_weights=false"),
        *("--data=TaskData", "--data.data=ImageData", f"--data.data.root={patches}", "--data.data.preprocess.size=16"),
        *("--data.data.preprocess.crop_pct=1.0", '--data.tasks=[{"readout": "pair", "classes": [1, 0]}]'),
        *("--data.train_images=50", "--data.select_images=50", "--data.report_images=100"),
        *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_progress_bar=false"),
        *(f"--trainer.max_steps={steps}", "--trainer.max_epochs=-1", *more),
    ]
    main(["fit", *words])
    main(["test", *words, "--ckpt_path=last"])
    return {(record.of, record.measure): record for record in read_results(run / "run" / "results.json")}


REAL = "planted/red or blue/seed 0"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_planted_model_tells_the_colour_of_the_first_patch(depth: int, patches: Path) -> None:
    model = build(depth)
    for label, name in enumerate(("blue", "red")):
        for number in range(20):
            pixels = np.asarray(Image.open(patches / "test" / name / f"{number}.png"), np.float32) / 127.5 - 1
            logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
            assert float((logits[0, label] - logits[0, 1 - label]).detach()) > 4


@pytest.mark.parametrize("depth", [1, 2])
def test_planted_edges_and_live_nodes_are_those_that_were_planted(depth: int) -> None:
    model = build(depth)
    nodes = Nodes(model)
    mask = planted(nodes, depth)
    table = wiring(model, nodes)
    assert int(count_edges(table, mask[None]).edges) == EDGES[depth]
    asks = torch.zeros(nodes.n)
    asks[nodes.site(0, "q").start] = 4.0  # its mean: a query that is the same everywhere
    assert torch.equal(live_nodes(table, mask[None], asks)[0], mask)


@pytest.mark.parametrize("depth", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_planted_circuit_is_found(depth: int, patches: Path, tmp_path: Path) -> None:
    records = found(tmp_path, patches, depth, "--data.nonsense=false")
    assert_planted(tmp_path / "run", depth)
    assert records[REAL, "edges"].value == EDGES[depth]
    assert records[REAL, "live_nodes"].value == records[REAL, "nodes"].value
    assert records[REAL, "p_sufficient"].value <= 0.05
    assert records[REAL, "loss_alone"].value < 0.1 < records[REAL, "loss_without"].value
    assert records[REAL, "cpr"].value > 0.9
    assert records[REAL, "cmd"].value < 0.1


def assert_planted(run: Path, depth: int) -> None:
    """Every node is found, at most a tenth of others with them."""
    nodes = Nodes(build(depth))
    truth, mask = planted(nodes, depth), masks_of(run)[0]
    missed, extra = (truth & ~mask).nonzero().flatten().tolist(), (mask & ~truth).nonzero().flatten().tolist()
    assert not missed
    assert len(extra) <= 0.1 * int(truth.sum())


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--model.learning.lr=0.01",), ("--trainer.max_steps=600",)])
def test_a_planted_circuit_is_found_by_longer_or_faster_steps(
    more: tuple[str, ...], patches: Path, tmp_path: Path
) -> None:
    found(tmp_path, patches, 2, "--data.nonsense=false", *more)
    assert_planted(tmp_path / "run", 2)


@pytest.fixture(scope="module")
def controlled(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Record]:
    """Return the records of a planted model with all controls."""
    return found(tmp_path_factory.mktemp("controlled"), patches, 1, "--model.permuted_weights=true")


@pytest.mark.parametrize("control", ["nonsense_labels", "permuted_weights"])
def test_controls_hold_no_circuit_of_that_quality(control: str, controlled: dict[tuple[str, str], Record]) -> None:
    assert math.isnan(controlled[REAL, f"switches_of_{control}"].value)  # no size reaches the target
    assert controlled[REAL, f"loss_of_{control}"].value > 10 * controlled[REAL, "loss_alone"].value
    assert_known_loss(control, controlled)


def assert_known_loss(control: str, records: dict[tuple[str, str], Record]) -> None:
    """What a control has learnt by heart stands beside what it does on other images."""
    learnt = records[REAL, f"learnt_loss_of_{control}"]
    assert learnt.null is not None
    assert learnt.null.value == records[REAL, f"loss_of_{control}"].value


def test_a_planted_circuit_passes_what_a_model_of_few_nodes_lets_it_pass(
    controlled: dict[tuple[str, str], Record],
) -> None:
    """Draws hit nodes of a chain in which every node is needed: necessity has no power there.

    Zero in the place of the channel that keeps norms steady is worse than no circuit at all; other constants are not.
    """
    (text, *_) = controlled[REAL, "nodes"].notes
    failed = set(text.removeprefix("fails ").split(", ")) if text != PASSED else set()
    assert failed <= {"necessity", "ablation"}
    empty = controlled[REAL, "loss_empty"].value
    assert (controlled[REAL, "loss_zero"].value > empty) == ("ablation" in failed)
    for constant in ("mean_position", "mean_prefix_patch"):
        assert controlled[REAL, f"loss_{constant}"].value < 0.1 * empty
    assert (controlled[REAL, "p_necessary"].value > 0.05) == ("necessity" in failed)
    without = controlled[REAL, "loss_without_beside_others"]
    assert without.null is not None
    assert without.value > 10 * without.null.value  # nothing outside of it is missed
    assert controlled[REAL, "loss_by_gradient"].value > controlled[REAL, "loss_alone"].value
    assert controlled[REAL, "loss_alone"].value <= controlled[REAL, "loss_to_reach"].value * 1.5


@pytest.mark.parametrize(
    "target", ["--model.target.kind=absolute", pytest.param("--model.target.kind=relative", marks=pytest.mark.slow)]
)
def test_random_weights_hold_no_circuit_of_that_quality(target: str, patches: Path, tmp_path: Path) -> None:
    records = found(tmp_path, patches, 1, target, "--data.nonsense=false", steps=100, permuted=True)
    assert records[REAL, "nodes"].notes[0] in ("the model cannot do it", "no size reaches the target")


def masks_of(run: Path) -> Tensor:
    (path,) = run.rglob("masks.safetensors")
    return load_file(path)["masks"].bool()
