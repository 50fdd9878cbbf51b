"""The verb prunes as its definitions say, writes what plain timm loads, and refuses what cannot be before any work."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from jsonargparse import auto_cli
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from impact_lightning.backbones import Backbone, capture, fingerprint
from impact_lightning.sparsity import CalibrationImages, find_targets, prune, read_masks, read_protocol
from impact_lightning.sparsity.calibration import calibrate
from impact_lightning.sparsity.masks import n_zeros
from impact_lightning.sparsity.pruned_file import masks_path
from impact_lightning.sparsity.pruning import Pruning
from impact_lightning.sparsity.scores import magnitude, wanda
from impact_lightning.types import UserError
from tests.distributed import run_distributed
from tests.sparsity.tiny import BATCH, N_IMAGES, N_TRAIN, drawn_images, make_backbone, make_data

SITES = {"attn.qkv": "attn_in", "attn.proj": "head_out", "mlp.fc1": "mlp_in", "mlp.fc2": "mlp_neuron"}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "layer_scale"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("weights"), layer_scale=request.param)


def pruned(tmp_path: Path, backbone: Backbone, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Prune into a file; return its weights and masks."""
    file = tmp_path / "sparse.safetensors"
    usual: dict[str, Any] = {"data": make_data(), "images": N_IMAGES, "batch_size": BATCH, "out": file}
    prune(backbone=backbone, **(usual | settings))
    return load_file(file), read_masks(file)


def dense(backbone: Backbone) -> dict[str, Tensor]:
    assert backbone.weights is not None
    return load_file(backbone.weights)


def lowest_gone(scores: Tensor, zeros: int) -> Tensor:
    """Return a mask without the lowest of each row, by a full sort."""
    order = scores.argsort(dim=1, stable=True)
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, order[:, :zeros], False)


@torch.no_grad()
def reference_norms(model: nn.Module, sites: list[str]) -> dict[str, Tensor]:
    """`||x_j||_2` over all tokens of the drawn images, in float64."""
    total: dict[str, Any] = dict.fromkeys(sites, 0)
    with capture(model.eval(), sites) as seen:
        for images in drawn_images().batches(torch.device("cpu")):
            model(images)
            for site in sites:
                total[site] = total[site] + seen[site].double().flatten(0, 1).square().sum(0)
    return {site: squares.sqrt() for site, squares in total.items()}


def wanda_reference(backbone: Backbone, scope: str, s: float) -> dict[str, Tensor]:
    """Wanda from its definition: score |W| * ||x||, the lowest of each group go."""
    norms, masks = reference_norms(backbone.build(), all_sites()), {}
    for i in range(3):
        for layer, site in SITES.items():
            name = f"blocks.{i}.{layer}.weight"
            scores = dense(backbone)[name].double().abs() * norms[f"blocks.{i}.{site}"]
            groups, zeros = scores, n_zeros(s, scores.shape[1])
            if scope == "tensor":
                groups, zeros = scores.reshape(1, -1), n_zeros(s, scores.numel())
            if ":" in scope:
                keep, of = map(int, scope.split(":"))
                groups, zeros = scores.reshape(-1, of), of - keep
            masks[name] = lowest_gone(groups, zeros).view_as(scores)
    return masks


def all_sites() -> list[str]:
    return [f"blocks.{i}.{site}" for i in range(3) for site in SITES.values()]


# ------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize(
    ("scope", "sparsity"),
    [
        ("row", 0.5),
        ("row", 0.3),
        ("row", 0.99),
        ("tensor", 0.5),
        ("tensor", 0.71),
        ("2:4", None),
        ("1:4", None),
        ("1:3", None),
    ],
)
def test_wanda_is_its_definition_on_every_layer(
    tmp_path: Path, backbone: Backbone, scope: str, sparsity: float | None
) -> None:
    weights, masks = pruned(tmp_path, backbone, scope=scope, sparsity=sparsity)
    expected = wanda_reference(backbone, scope, sparsity or 0)
    assert masks.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(masks[name], mask), name
        assert torch.equal(weights[name], torch.where(mask, dense(backbone)[name], 0.0))


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_global_compares_branches_as_layer_scale_weighs_them(
    tmp_path: Path, backbone: Backbone, method: str, fold: bool
) -> None:
    _, masks = pruned(tmp_path, backbone, method=method, scope="global", sparsity=0.37, fold_layer_scale=fold)
    weights, scores = dense(backbone), {}
    norms = reference_norms(backbone.build(), all_sites())
    for i in range(3):
        for layer, site in SITES.items():
            name = f"blocks.{i}.{layer}.weight"
            scores[name] = weights[name].double().abs() * (norms[f"blocks.{i}.{site}"] if method == "wanda" else 1.0)
            gamma = weights.get(f"blocks.{i}.{'ls1' if layer.startswith('attn') else 'ls2'}.gamma")
            if fold and gamma is not None:
                row = gamma.double().abs()
                scores[name] = scores[name] * (row[:, None] if layer in ("attn.proj", "mlp.fc2") else row.mean())
    flat = torch.cat([part.flatten() for part in scores.values()])[None]
    mask = lowest_gone(flat, n_zeros(0.37, flat.numel()))
    assert torch.equal(torch.cat([masks[name].flatten() for name in scores]), mask[0])


def tied_weights(w: Tensor) -> Tensor:
    """Return weights of few magnitudes, none of them 0: what is zero stays so, however it is scored."""
    return w.sign() * w.mul(2).round().abs().clamp_min(0.5)


def test_magnitude_needs_no_images_and_ties_go_by_index(tmp_path: Path, backbone: Backbone) -> None:
    weights = dense(backbone)
    weights = {name: tied_weights(w) if "blocks" in name and w.ndim == 2 else w for name, w in weights.items()}
    save_file(weights, tmp_path / "tied.safetensors")
    tied = Backbone(backbone.name, weights=tmp_path / "tied.safetensors", model_args=backbone.model_args, num_classes=5)
    _, masks = pruned(tmp_path, tied, method="magnitude", scope="row", sparsity=0.4, data=None)
    for name, mask in masks.items():
        assert torch.equal(mask, lowest_gone(weights[name].abs(), n_zeros(0.4, mask.shape[1])))


def test_wanda_on_ones_is_magnitude() -> None:
    weight, x = torch.randn(13, 29), torch.ones(50, 29)
    for zeros in (1, 14, 28):
        by_wanda = lowest_gone(wanda(weight, x.double().norm(dim=0)), zeros)
        assert torch.equal(by_wanda, lowest_gone(magnitude(weight), zeros))


def test_random_is_a_function_of_seed_and_name(tmp_path: Path, backbone: Backbone) -> None:
    settings: dict[str, Any] = {"method": "random", "scope": "tensor", "sparsity": 0.5, "data": None}
    everything = pruned(tmp_path, backbone, **settings)[1]
    some = pruned(tmp_path, backbone, **settings, include=["blocks.2.*"])[1]
    other = pruned(tmp_path, backbone, **settings, seed=1)[1]
    assert len(some) == 4
    for name, mask in some.items():
        assert torch.equal(mask, everything[name])
        assert not torch.equal(mask, other[name])
    first, second = everything["blocks.0.mlp.fc1.weight"], everything["blocks.1.mlp.fc1.weight"]
    assert not torch.equal(first, second)


def test_q_k_and_v_can_be_compared_each_with_itself(tmp_path: Path, backbone: Backbone) -> None:
    settings: dict[str, Any] = {"method": "magnitude", "scope": "tensor", "sparsity": 0.3}
    _, masks = pruned(tmp_path, backbone, **settings, split_qkv=True)
    thirds = masks["blocks.1.attn.qkv.weight"].chunk(3)
    assert [int((~third).sum()) for third in thirds] == [n_zeros(0.3, 24 * 24)] * 3
    assert torch.equal(
        masks["blocks.1.mlp.fc1.weight"], pruned(tmp_path, backbone, **settings)[1]["blocks.1.mlp.fc1.weight"]
    )


@pytest.mark.parametrize(("scope", "sparsity"), [("tensor", 0.5), ("2:4", None)])
def test_sparsegpt_meets_the_counts_and_errs_less_than_wanda(
    tmp_path: Path, backbone: Backbone, scope: str, sparsity: float | None
) -> None:
    model, batches = backbone.build().eval(), drawn_images().batches(torch.device("cpu"))
    inputs = calibrate(model, find_targets(model), batches, gram=True).inputs
    before, errors = dense(backbone), {}
    for method in ("sparsegpt", "wanda"):
        weights, masks = pruned(tmp_path, backbone, method=method, scope=scope, sparsity=sparsity)
        assert all(int((~mask).sum()) == mask.numel() // 2 for mask in masks.values())
        errors[method] = 0.0
        for name in masks:
            gram, change = inputs[name].gram, (weights[name] - before[name]).double()
            assert gram is not None
            errors[method] += float(((change @ gram) * change).sum())  # ||X dW||^2
    assert errors["sparsegpt"] < errors["wanda"]


def test_sequential_looks_at_activations_of_the_pruned_blocks(tmp_path: Path, backbone: Backbone) -> None:
    prune(
        backbone=backbone,
        data=make_data(),
        out=tmp_path / "s.safetensors",
        sparsity=[0.7, 0.5],
        sequential=True,
        images=N_IMAGES,
        batch_size=BATCH,
    )
    masks = read_masks(tmp_path / "s-0.5.safetensors")
    model = backbone.build()
    for i in range(3):
        norms = reference_norms(model, [f"blocks.{i}.{site}" for site in SITES.values()])
        for layer, site in SITES.items():
            parameter = model.get_parameter(f"blocks.{i}.{layer}.weight")
            scores = parameter.detach().double().abs() * norms[f"blocks.{i}.{site}"]
            expected = lowest_gone(scores, scores.shape[1] // 2)
            assert torch.equal(masks[f"blocks.{i}.{layer}.weight"], expected)
            parameter.data.mul_(expected)
    one_pass = wanda_reference(backbone, "row", 0.5)
    assert torch.equal(masks["blocks.0.attn.qkv.weight"], one_pass["blocks.0.attn.qkv.weight"])
    assert any(not torch.equal(masks[name], one_pass[name]) for name in masks)


@pytest.mark.parametrize("ratios", ["outliers", {"blocks.0.*": 0.2, "blocks.1.mlp_neuron": 0.4}])
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_ratios_reach_the_sparsity(tmp_path: Path, backbone: Backbone, ratios: Any, method: Any) -> None:
    _, masks = pruned(tmp_path, backbone, method=method, scope="tensor", sparsity=0.5, ratios=ratios)
    shares = {name: float((~mask).double().mean()) for name, mask in masks.items()}
    zeros, size = (sum(part) for part in zip(*((int((~m).sum()), m.numel()) for m in masks.values()), strict=True))
    assert 0 <= 0.5 * size - zeros <= len(masks)
    if ratios == "outliers":
        assert len({round(share, 2) for share in shares.values()}) > 1
    else:
        assert shares["blocks.0.attn.qkv.weight"] == n_zeros(0.2, 72 * 24) / (72 * 24)
        assert shares["blocks.1.mlp.fc2.weight"] == n_zeros(0.4, 24 * 96) / (24 * 96)


# ------------------------------------------------------------------------------------------------------- files


def test_several_sparsities_are_made_of_one_pass(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    batches = CalibrationImages.batches

    def counted(drawn: CalibrationImages, device: torch.device) -> Iterator[Tensor]:
        calls.append(1)
        return batches(drawn, device)

    monkeypatch.setattr(CalibrationImages, "batches", counted)
    settings: dict[str, Any] = {"data": make_data(), "images": N_IMAGES, "batch_size": BATCH}
    prune(backbone=backbone, out=tmp_path / "{sparsity}.x.safetensors", sparsity=[0.7, 0.0, 0.5], **settings)
    assert calls == [1]
    table = capsys.readouterr().out
    assert "blocks.*.mlp.fc2 (3)" in table
    assert "0.6991" in table or "0.6667" in table  # 16 of 24 and 67 of 96 zeros
    for sparsity in (0.7, 0.5):
        alone, masks = pruned(tmp_path, backbone, sparsity=sparsity)
        together = tmp_path / f"{sparsity}.x.safetensors"
        assert all(torch.equal(weights, load_file(together)[name]) for name, weights in alone.items())
        assert all(torch.equal(mask, read_masks(together)[name]) for name, mask in masks.items())


@pytest.mark.parametrize("method", ["random", "magnitude", "wanda", "sparsegpt"])
def test_sparsity_0_is_the_dense_model_bit_for_bit(tmp_path: Path, backbone: Backbone, method: Any) -> None:
    weights, masks = pruned(tmp_path, backbone, method=method, sparsity=0)
    assert fingerprint(weights) == fingerprint(dense(backbone)) == fingerprint(backbone.build())
    assert all(mask.all() for mask in masks.values())


@pytest.mark.parametrize(("method", "scope"), [("wanda", "row"), ("sparsegpt", "2:4"), ("magnitude", "global")])
def test_plain_timm_loads_it_and_everything_else_is_as_it_was(
    tmp_path: Path, backbone: Backbone, method: Any, scope: str
) -> None:
    weights, masks = pruned(tmp_path, backbone, method=method, scope=scope, sparsity=0.5)
    before = dense(backbone)
    assert {name: (w.dtype, w.shape) for name, w in weights.items()} == {
        n: (w.dtype, w.shape) for n, w in before.items()
    }
    for name in before.keys() - masks.keys():
        assert torch.equal(weights[name], before[name])
    for name, mask in masks.items():
        assert not weights[name][~mask].any()
        assert not weights[name][~mask].signbit().any()
        if method != "sparsegpt":
            assert torch.equal(weights[name][mask], before[name][mask])
    args: dict[str, Any] = {**backbone.model_args}
    model = timm.create_model(backbone.name, num_classes=5, **args)
    model.load_state_dict(weights)
    again = Backbone(
        backbone.name, weights=tmp_path / "sparse.safetensors", model_args=backbone.model_args, num_classes=5
    )
    assert fingerprint(again.build()) == fingerprint(model) == fingerprint(weights)


def test_the_protocol_says_how_it_was_made(tmp_path: Path, backbone: Backbone) -> None:
    weights, masks = pruned(tmp_path, backbone, sparsity=0.3, seed=7)
    protocol = read_protocol(tmp_path / "sparse.safetensors")
    assert protocol["weights_before"] == fingerprint(dense(backbone))
    assert protocol["weights"] == fingerprint(weights)
    assert (protocol["method"], protocol["scope"], protocol["sparsity"]) == ("wanda", "row", 0.3)
    assert (protocol["seed"], protocol["model"]) == (7, "vit_tiny_patch16_224")
    drawn = CalibrationImages(make_data(), N_IMAGES, BATCH, 7)
    assert protocol["calibration"]["fingerprint"] == drawn.fingerprint
    assert protocol["calibration"]["images"] == N_IMAGES
    assert protocol["calibration"]["transform"]["mean"] == [0.5, 0.5, 0.5]
    achieved = protocol["achieved"]
    assert achieved["blocks.0.mlp.fc2.weight"] == pytest.approx(28 / 96)
    zeros, size = sum(int((~mask).sum()) for mask in masks.values()), sum(mask.numel() for mask in masks.values())
    assert achieved["total"] == pytest.approx(zeros / size)
    with safe_open(tmp_path / "sparse.safetensors", "pt") as file:
        assert json.loads(file.metadata()["protocol"]) == protocol
    assert masks_path(tmp_path / "sparse.safetensors").stat().st_size < 10_000 + size / 8


def test_masks_of_other_weights_are_refused(tmp_path: Path, backbone: Backbone) -> None:
    pruned(tmp_path, backbone, sparsity=0.3)
    prune(backbone=backbone, out=tmp_path / "other.safetensors", method="magnitude", sparsity=0.3)
    file = tmp_path / "sparse.safetensors"
    masks_path(tmp_path / "other.safetensors").rename(masks_path(file))
    with pytest.raises(UserError, match=r"sparse\.masks\.safetensors holds the masks of other weights"):
        read_masks(file)
    masks_path(file).unlink()
    with pytest.raises(UserError, match=r"missing beside it: copy sparse\.masks\.safetensors"):
        read_masks(file)
    assert backbone.weights is not None
    with pytest.raises(UserError, match="was not written by `prune`"):
        read_protocol(backbone.weights)


def test_other_layers_can_be_pruned_too(tmp_path: Path, backbone: Backbone) -> None:
    weights, masks = pruned(tmp_path, backbone, sparsity=0.5, include=["patch_embed.proj", "head"])
    assert set(masks) == {"patch_embed.proj.weight", "head.weight"}
    assert weights["patch_embed.proj.weight"].shape == (24, 3, 8, 8)
    assert (~masks["patch_embed.proj.weight"]).flatten(1).sum(1).tolist() == [96] * 24


def prune_on_a_rank(rank: int, folder: Path, backbone: Backbone, settings: dict[str, Any]) -> str:
    prune(
        backbone=backbone,
        data=make_data(),
        out=folder / f"{rank}.safetensors",
        images=N_IMAGES,
        batch_size=BATCH,
        device="cpu",
        **settings,
    )
    return ",".join(sorted(path.name for path in folder.iterdir()))


@pytest.mark.parametrize(
    "settings",
    [{"sparsity": 0.5}, {"method": "sparsegpt", "scope": "2:4"}, {"sparsity": 0.5, "sequential": True}],
    ids=["wanda", "sparsegpt", "sequential"],
)
def test_two_ranks_write_one_file_with_the_masks_of_one(
    tmp_path: Path, backbone: Backbone, settings: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    alone, two = tmp_path / "alone", tmp_path / "two"
    alone.mkdir()
    two.mkdir()
    prune_on_a_rank(0, alone, backbone, settings)
    run_distributed(prune_on_a_rank, two, backbone, settings)
    assert sorted(path.name for path in two.iterdir()) == ["0.masks.safetensors", "0.safetensors"]
    masks, weights = read_masks(alone / "0.safetensors"), load_file(alone / "0.safetensors")
    assert all(torch.equal(mask, masks[name]) for name, mask in read_masks(two / "0.safetensors").items())
    for name, weight in load_file(two / "0.safetensors").items():
        assert torch.allclose(weight, weights[name], rtol=1e-4, atol=1e-5)
    assert read_protocol(two / "0.safetensors")["calibration"] == read_protocol(alone / "0.safetensors")["calibration"]


def test_the_command_line_reads_its_options(tmp_path: Path, backbone: Backbone) -> None:
    config = tmp_path / "prune.yaml"
    config.write_text(
        f"""
backbone:
  name: {backbone.name}
  weights: {backbone.weights}
  num_classes: 5
  model_args: {json.dumps(backbone.model_args)}
data:
  class_path: impact_lightning.data.scenes.SceneData
  init_args:
    source: {{class_path: impact_lightning.data.rooms.Rooms, init_args: {{size: 16}}}}
    label: [shape]
    n_train: {N_TRAIN}
    n_val: 5
    n_test: 5
images: {N_IMAGES}
scope: tensor
ratios: {{blocks.0.*: 0.3}}
"""
    )
    out = f"--out={tmp_path / 'cli.safetensors'}"
    auto_cli(
        {"prune": prune}, args=["prune", f"--config={config}", out, "--sparsity=[0.5, 0.6]", "--exclude=['*.head_out']"]
    )
    protocol = read_protocol(tmp_path / "cli-0.6.safetensors")
    assert protocol["achieved"]["total"] == pytest.approx(0.6, abs=1e-3)
    assert protocol["ratios"] == {"blocks.0.*": 0.3}
    assert "blocks.0.attn.proj.weight" not in protocol["achieved"]
    auto_cli({"prune": prune}, args=["prune", f"--config={config}", out, "--sparsity=0.5", "--ratios=outliers"])
    assert read_protocol(tmp_path / "cli.safetensors")["ratios"] == "outliers"


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1}, r"sparsity must lie in \[0, 1\), got 1\.0: at 1 no weight is left"),
        ({"sparsity": [0.5, -0.1]}, r"sparsity must lie in \[0, 1\), got -0\.1"),
        ({"sparsity": float("nan")}, r"sparsity must lie in \[0, 1\)"),
        ({"sparsity": [0.5, 0.5]}, "each once"),
        ({"sparsity": []}, "at least one"),
        ({}, "say which share"),
        ({"sparsity": 0.5, "scope": "layer"}, "choose row, tensor, global, or N:M"),
        ({"sparsity": 0.3, "scope": "2:4"}, r"scope 2:4 makes 0\.5"),
        ({"scope": "2:5"}, r"blocks\.0\.attn\.qkv\.weight has 24 inputs, no multiple of 5"),
        ({"sparsity": 0.5, "include": ["blocks.9.*"]}, r"include: no weights are named 'blocks\.9\.\*'"),
        ({"sparsity": 0.5, "ratios": {"blocks.9.*": 0.1}}, r"ratios: no weights are named"),
        ({"sparsity": 0.9, "ratios": {"*fc*": 0.1}}, "would need the ratio"),
        ({"scope": "global", "sparsity": 0.5, "ratios": "outliers"}, "scope global decides by itself"),
        ({"images": N_TRAIN + 1, "sparsity": 0.5}, "31 are to be drawn for calibration, but the train split has 30"),
        ({"images": 0, "sparsity": 0.5}, "images must be at least 1"),
        ({"batch_size": 0, "sparsity": 0.5}, "batch_size must be at least 1"),
        ({"seed": -1, "sparsity": 0.5}, "seed must not be negative"),
        ({"data": None, "sparsity": 0.5}, "method wanda looks at activations: give the images in data"),
        ({"data": None, "sparsity": 0.5, "method": "magnitude", "ratios": "outliers"}, "ratios outliers looks at"),
        ({"sparsity": 0.5, "method": "sparsegpt", "scope": "row"}, "set scope to tensor, or N:M"),
        ({"sparsity": 0.5, "method": "random", "sequential": True}, "random reads no activations"),
        ({"sparsity": 0.5, "scope": "global", "sequential": True}, "scope global compares them all"),
        ({"sparsity": 0.5, "split_qkv": True}, "in scope tensor, not in row"),
        ({"sparsity": 0.5, "out": Path("model.pth")}, r"written as \.safetensors"),
        ({"sparsity": 0.5, "out": Path("/proc/no/model.safetensors")}, r"the folder of .* cannot be made"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    tmp_path: Path, backbone: Backbone, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pruning, "__init__", None)
    with pytest.raises(UserError, match=message):
        pruned(tmp_path, backbone, **settings)
    assert not list(tmp_path.iterdir())


def test_images_of_another_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pruning, "__init__", None)
    larger = make_backbone(tmp_path, img_size=32)
    message = r"the images are \(3, 16, 16\) and vit_tiny_patch16_224 takes \(3, 32, 32\): change the size"
    with pytest.raises(UserError, match=message):
        pruned(tmp_path, larger, sparsity=0.5)


def test_the_dense_file_is_not_written_over(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is the file of the dense weights"):
        pruned(tmp_path, backbone, sparsity=0.5, out=backbone.weights)


def test_augmented_images_and_weights_that_are_no_numbers_are_refused(tmp_path: Path, backbone: Backbone) -> None:
    data = make_data()
    vars(data)["augment"] = object()
    with pytest.raises(UserError, match=r"data\.augment"):
        pruned(tmp_path, backbone, sparsity=0.5, data=data)
    weights = dense(backbone)
    weights["blocks.1.mlp.fc1.weight"][2, 3] = torch.nan
    save_file(weights, tmp_path / "bad.safetensors")
    bad = Backbone(backbone.name, weights=tmp_path / "bad.safetensors", model_args=backbone.model_args, num_classes=5)
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.fc1\.weight holds nan or infinity"):
        pruned(tmp_path, bad, sparsity=0.5, method="magnitude")


@pytest.mark.parametrize("method", ["random", "wanda", "sparsegpt"])
def test_what_is_zero_already_stays_zero_and_is_counted(tmp_path: Path, backbone: Backbone, method: Any) -> None:
    pruned(tmp_path / "first", backbone, sparsity=0.6)
    sparse = replace(backbone, weights=tmp_path / "first" / "sparse.safetensors")
    weights, masks = pruned(tmp_path / "again", sparse, method=method, sparsity=0.3)
    before = load_file(tmp_path / "first" / "sparse.safetensors")
    for name, mask in masks.items():
        if method != "sparsegpt":
            assert not weights[name][before[name] == 0].any()
        assert torch.equal(mask, weights[name] != 0), name
    protocol = read_protocol(tmp_path / "again" / "sparse.safetensors")
    zeros = sum(int((weights[name] == 0).sum()) for name in masks)
    assert protocol["achieved"]["total"] == pytest.approx(zeros / sum(mask.numel() for mask in masks.values()))
