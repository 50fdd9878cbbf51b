"""The rest of a model is the model."""

from typing import Any

import pytest
import timm
import torch

from impact_lightning.backbones import capture, patch
from impact_lightning.backbones.rest import forward_rest

ARGS: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "deit3_small_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "vit_base_patch16_reg4_gap_256",
        "vit_base_patch16_clip_224",
    ],
)
@pytest.mark.parametrize("block", [0, 2, 3])
def test_it_goes_on_to_the_same_logits(name: str, block: int) -> None:
    model = timm.create_model(name, **ARGS).eval()
    images = torch.randn(2, 3, 16, 16)
    site = f"blocks.{block}.resid_pre" if block < 3 else "blocks.2.resid_post"
    with torch.no_grad(), capture(model, site, stop=False) as captured:
        logits = model(images)
        stream = captured[site]
    with torch.no_grad():
        assert torch.equal(forward_rest(model, block, stream), logits)


@torch.no_grad()
def test_patches_act_on_it() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **ARGS).eval()
    images = torch.randn(2, 3, 16, 16)
    edits = {"blocks.1.mlp_neuron": torch.zeros_like}
    with capture(model, "blocks.1.resid_pre") as captured:
        model(images)
    with patch(model, edits):
        rest, whole = forward_rest(model, 1, captured["blocks.1.resid_pre"]), model(images)
    assert torch.equal(rest, whole)
    assert not torch.equal(rest, model(images))
