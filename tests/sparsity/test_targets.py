"""Targets are chosen by name, glob, site or regular expression; a pattern that means nothing is refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from impact_lightning.sparsity.targets import all_targets, find_targets
from impact_lightning.types import UserError
from tests.sparsity.tiny import ARGS, make_backbone

PARTS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", num_classes=5, **ARGS)
    return model


def names(model: nn.Module, include: list[str], exclude: list[str] | None = None) -> list[str]:
    return [target.name.removesuffix(".weight") for target in find_targets(model, include, exclude or [])]


def test_default_is_every_linear_layer_of_the_blocks(model: nn.Module) -> None:
    expected = [f"blocks.{i}.{part}" for i in range(3) for part in PARTS]
    assert [target.name for target in find_targets(model)] == [f"{name}.weight" for name in expected]
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linear - set(expected) == {"head"}


@pytest.mark.parametrize(
    "pattern",
    ["blocks.1.mlp.fc1", "blocks.1.mlp.fc1.weight", "blocks.1.mlp_in", r"re:blocks\.1\..*fc1", "*1.mlp.fc1"],
)
def test_one_layer_has_many_names(model: nn.Module, pattern: str) -> None:
    assert names(model, [pattern]) == ["blocks.1.mlp.fc1"]


def test_exclude_wins_and_the_order_is_that_of_execution(model: nn.Module) -> None:
    chosen = names(model, ["head", "blocks.0.*", "patch_embed.proj"], ["*.mlp_neuron", "blocks.0.attn.qkv"])
    assert chosen == ["patch_embed.proj", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "head"]


def test_what_means_nothing_is_refused_with_the_names_that_there_are(model: nn.Module) -> None:
    with pytest.raises(UserError, match=r"include: no weights are named 'blocks\.3\.\*'.*\*\.attn\.qkv \(3\).*head"):
        find_targets(model, ["blocks.3.*"])
    with pytest.raises(UserError, match=r"exclude: no weights are named 'blocks\.0\.norm1'"):
        find_targets(model, exclude=["blocks.0.norm1"])
    with pytest.raises(UserError, match="no regular expression"):
        find_targets(model, ["re:("])
    with pytest.raises(UserError, match="leave no weights"):
        find_targets(model, ["head"], ["head"])


@pytest.mark.parametrize(
    "name", ["deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"]
)
def test_every_linear_layer_of_a_block_is_known(name: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(name, depth=2, num_classes=3)
    found = {target.name for target in all_targets(model)} - {"patch_embed.proj.weight", "head.weight"}
    assert found == {
        f"{n}.weight" for n, module in model.blocks.named_modules(prefix="blocks") if isinstance(module, nn.Linear)
    }
    scaled = {target.name for target in all_targets(model) if target.layer_scale is not None}
    assert scaled == found
    gammas = {name: (model.blocks[0].ls1 if "attn" in name else model.blocks[0].ls2) for name in found if ".0." in name}
    for target in all_targets(model):
        assert target.name not in gammas or target.layer_scale is gammas[target.name]


def test_the_gain_is_by_row_where_the_residual_stream_is_written_and_a_mean_where_it_is_read(tmp_path: Path) -> None:
    model: Any = make_backbone(tmp_path, layer_scale=True).build()
    ls1, ls2 = (scale.gamma.detach().double().abs() for scale in (model.blocks[0].ls1, model.blocks[0].ls2))
    qkv, proj, fc1, fc2 = (torch.as_tensor(target.gain) for target in find_targets(model, ["blocks.0.*"]))
    assert torch.equal(proj, ls1[:, None])
    assert torch.equal(fc2, ls2[:, None])
    assert (qkv, fc1) == (ls1.mean(), ls2.mean())
    assert {target.gain for target in find_targets(make_backbone(tmp_path).build())} == {1.0}


def test_the_matrix_times_the_rows_is_what_the_layer_computes(tmp_path: Path) -> None:
    model = make_backbone(tmp_path).build()
    embedding = find_targets(model, ["patch_embed.proj"])[0]
    x = torch.randn(2, 3, 16, 16)
    assert embedding.layer.bias is not None
    by_matrix = embedding.rows(x) @ embedding.weight.T + embedding.layer.bias
    assert torch.allclose(by_matrix, embedding.layer(x).flatten(2).transpose(1, 2).flatten(0, 1), atol=1e-5)
