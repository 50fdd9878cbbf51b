"""Calibration sums exactly, over drawn images that are the same on any number of ranks, and leaves the model alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.backbones import Backbone, capture
from impact_lightning.sparsity import CalibrationImages, Target, calibrate, find_targets
from impact_lightning.types import UserError
from tests.distributed import run_distributed
from tests.sparsity.tiny import BATCH, N_IMAGES, N_TRAIN, drawn_images, images_in_one_batch, make_backbone, make_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("weights"), layer_scale=True, proj_drop_rate=0.5, drop_path_rate=0.5)


@torch.no_grad()
def blockwise(model: VisionTransformer, images: Tensor) -> dict[str, Tensor]:
    """What every layer of the blocks reads, block by block with dense outputs, as the authors of Wanda compute it."""
    x: Tensor = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    found: dict[str, Tensor] = {}
    for i, layer in enumerate(model.blocks):
        block: Any = layer
        attn, mlp, parts = block.attn, block.mlp, {}
        parts["attn.qkv"] = h = block.norm1(x)
        b, t, d = h.shape
        q, k, v = attn.qkv(h).reshape(b, t, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        mix = (q @ k.transpose(2, 3) * attn.scale).softmax(3) @ v  # (B, H, T, h)
        parts["attn.proj"] = mix.transpose(1, 2).reshape(b, t, d)
        x = x + block.ls1(attn.proj(parts["attn.proj"]))
        parts["mlp.fc1"] = h = block.norm2(x)
        parts["mlp.fc2"] = mlp.act(mlp.fc1(h))
        x = x + block.ls2(mlp.fc2(parts["mlp.fc2"]))
        found |= {f"blocks.{i}.{name}.weight": value.flatten(0, 1) for name, value in parts.items()}
    return found


def test_one_pass_equals_the_blockwise_algorithm(backbone: Backbone) -> None:
    model = backbone.build().eval().double()
    expected = blockwise(model, images_in_one_batch().double())
    images = (batch.double() for batch in drawn_images().batches(CPU))
    found = calibrate(model, find_targets(model), images, gram=True)
    assert found.images == N_IMAGES
    assert found.inputs.keys() == expected.keys()
    for name, x in expected.items():
        assert found.inputs[name].tokens == len(x) == N_IMAGES * 5
        assert torch.allclose(found.inputs[name].norms, x.norm(dim=0), rtol=1e-12)
        gram = found.inputs[name].gram
        assert gram is not None
        assert torch.allclose(gram, x.T @ x, rtol=1e-10, atol=1e-10)


def test_sums_are_exact_to_float64(backbone: Backbone) -> None:
    model = backbone.build().eval()
    sites = {"attn.qkv": "attn_in", "attn.proj": "head_out", "mlp.fc1": "mlp_in", "mlp.fc2": "mlp_neuron"}
    squares: dict[str, Tensor] = {}
    with torch.no_grad(), capture(model, [f"blocks.*.{site}" for site in sites.values()]) as seen:
        for images in drawn_images().batches(CPU):
            model(images)
            for target in find_targets(model):
                assert target.site == f"{target.name[:8]}.{sites[target.name[9:].removesuffix('.weight')]}"
                x = seen[target.site].double().flatten(0, 1)
                squares[target.name] = squares.get(target.name, 0) + (x * x).sum(0)
    found = calibrate(model, find_targets(model), drawn_images().batches(CPU))
    for name, expected in squares.items():
        assert torch.allclose(found.inputs[name].squares, expected, rtol=1e-14, atol=0)


def test_long_inputs_are_summed_in_parts(tmp_path: Path) -> None:
    model = make_backbone(tmp_path, img_size=128).build()  # 257 tokens of 96 neurons: more than one part
    x = torch.randn(BATCH, 3, 128, 128)
    found = calibrate(
        model, find_targets(model, ["blocks.0.mlp_neuron", "blocks.0.attn_in", "patch_embed.proj"]), [x, x[:1]]
    )
    with torch.no_grad(), capture(model.eval(), ["blocks.0.mlp_neuron", "blocks.0.attn_in"]) as seen:
        model(x)
        first = {site: seen[f"blocks.0.{site}"].double().square() for site in ("mlp_neuron", "attn_in")}
        model(x[:1])
        for site, layer in (("mlp_neuron", "mlp.fc2"), ("attn_in", "attn.qkv")):
            expected = first[site].sum((0, 1)) + seen[f"blocks.0.{site}"].double().square().sum((0, 1))
            assert torch.allclose(found.inputs[f"blocks.0.{layer}.weight"].squares, expected, rtol=1e-5)
    patches = torch.cat([x, x[:1]]).double().reshape(-1, 3, 16, 8, 16, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * 64)
    assert torch.allclose(found.inputs["patch_embed.proj.weight"].squares, patches.square().sum(0), rtol=1e-12)


def test_the_mode_of_every_module_and_the_hooks_are_as_before(backbone: Backbone) -> None:
    model = backbone.build().train()
    model.blocks[1].eval()
    before = [module.training for module in model.modules()]
    noisy = calibrate(model, find_targets(model), drawn_images().batches(CPU))
    assert [module.training for module in model.modules()] == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    quiet = calibrate(model.eval(), find_targets(model), drawn_images().batches(CPU))
    assert all(torch.equal(noisy.inputs[name].squares, quiet.inputs[name].squares) for name in quiet.inputs)


def test_the_forward_ends_after_the_last_target(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    model = backbone.build()
    monkeypatch.setattr(model.blocks[2], "forward", None)
    calibrate(model, find_targets(model, ["blocks.1.*"]), drawn_images().batches(CPU))


def test_images_are_drawn_once_each_from_the_seed() -> None:
    data = make_data()
    draws = [CalibrationImages(data, N_IMAGES, BATCH, seed) for seed in (0, 0, 1)]
    assert [len(set(draw.rows.tolist())) for draw in draws] == [N_IMAGES] * 3
    assert draws[0].rows.tolist() == draws[1].rows.tolist() != draws[2].rows.tolist()
    assert draws[0].fingerprint == draws[1].fingerprint != draws[2].fingerprint
    assert draws[0].fingerprint != CalibrationImages(make_data(seed=5), N_IMAGES, BATCH, 0).fingerprint
    everything = CalibrationImages(data, N_TRAIN, 7, 0)
    assert everything.rows.tolist() == list(range(N_TRAIN))
    assert [len(batch) for batch in everything.batches(CPU)] == [7, 7, 7, 7, 2]


def sums_on_a_rank(rank: int, backbone: Backbone) -> dict[str, Any]:
    model = backbone.build()
    found = calibrate(model, find_targets(model), drawn_images().batches(CPU), gram=True)
    return {
        name: (found.images, sums.tokens, sums.squares.tolist(), sums.gram.tolist())  # type: ignore[union-attr]
        for name, sums in found.inputs.items()
    }


@pytest.mark.parametrize("world", [2, 7])  # 6 batches: with 7 ranks one has nothing to do
def test_any_number_of_ranks_finds_the_sums_of_one(backbone: Backbone, world: int) -> None:
    torch.set_num_threads(1)
    alone = sums_on_a_rank(0, backbone)
    ranks = run_distributed(sums_on_a_rank, backbone, world_size=world)
    assert all(rank == ranks[0] for rank in ranks)
    for name, (images, tokens, squares, gram) in alone.items():
        assert ranks[0][name][:2] == (images, tokens)
        assert torch.allclose(torch.tensor(ranks[0][name][2]), torch.tensor(squares), rtol=1e-6)
        assert torch.allclose(torch.tensor(ranks[0][name][3]), torch.tensor(gram), rtol=1e-5, atol=1e-5)


def test_what_is_not_finite_is_refused(backbone: Backbone) -> None:
    model = backbone.build()
    with torch.no_grad():
        model.get_parameter("blocks.1.norm1.bias")[3] = torch.nan
    with pytest.raises(UserError, match=r"blocks\.1\.attn\.qkv reads nan or infinity"):
        calibrate(model, find_targets(model), drawn_images().batches(CPU))


def test_no_images_are_refused(backbone: Backbone) -> None:
    model = backbone.build()
    targets: list[Target] = find_targets(model)
    with pytest.raises(UserError, match="none of the images can be read"):
        calibrate(model, targets, [])
