"""The logit lens is what a feature adds to the logits."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from impact_lightning.backbones import Backbone, patch
from impact_lightning.sae.lens import logit_lens

ARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def model(name: str = "vit_tiny_patch16_224", **more: object) -> VisionTransformer:
    torch.manual_seed(0)
    built = Backbone(name, model_args={**ARGS, **more}, num_classes=4).build().eval()  # type: ignore[dict-item]
    with torch.no_grad():
        for weight in built.parameters():  # norms with gains, so that leaving one out shows
            weight.add_(0.3 * torch.randn_like(weight))
    return built


def directions() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(5, 24, generator=torch.Generator().manual_seed(1)), dim=1)


def test_at_the_last_norm_it_is_exact() -> None:
    vit, images = model(), torch.randn(1, 3, 16, 16)
    lens = logit_lens(vit, "final_norm", 3 * directions())
    assert lens is not None
    with torch.no_grad():
        plain = vit(images)
        for direction, row in zip(directions(), lens, strict=True):
            with patch(vit, {"final_norm": lambda x, d=direction: x + d}):  # type: ignore[misc]
                added = (vit(images) - plain)[0]
            torch.testing.assert_close(added - added.mean(), row, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", ["blocks.0.resid_post", "blocks.1.mlp_out"])
def test_in_the_stream_it_goes_through_the_gain_of_the_norm(site: str) -> None:
    vit = model()
    lens = logit_lens(vit, site, directions())
    rows = directions() - directions().mean(1, keepdim=True)
    wanted = (rows * vit.norm.weight) @ vit.head.weight.T  # type: ignore[operator]
    assert lens is not None
    torch.testing.assert_close(lens, wanted - wanted.mean(1, keepdim=True))


def test_average_pooling_goes_through_the_norm_after_it() -> None:
    vit = model(global_pool="avg", class_token=False)
    lens = logit_lens(vit, "blocks.0.resid_post", directions())
    rows = directions() - directions().mean(1, keepdim=True)
    wanted = (rows * vit.fc_norm.weight) @ vit.head.weight.T  # type: ignore[operator]
    assert lens is not None
    torch.testing.assert_close(lens, wanted - wanted.mean(1, keepdim=True))


def test_there_is_none_outside_of_the_stream() -> None:
    assert logit_lens(model(), "blocks.0.mlp_neuron", torch.ones(3, 96)) is None
