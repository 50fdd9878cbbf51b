"""Grad-CAM is its definition, with gradients through plain attention."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.grad_cam import GradCAM
from tests.attribution import literal
from tests.attribution.literal import MODELS, build, random_images

TARGETS = torch.tensor([1, 0, 4])


def grad_cam(model: VisionTransformer, image: Tensor, target: int) -> Tensor:
    tapes, _, logits = literal.forward(model, image.clone().requires_grad_())
    tokens = tapes[-1].n1
    (gradient,) = torch.autograd.grad(logits[target], tokens)
    weights, patches = gradient[model.num_prefix_tokens :].mean(0), tokens[model.num_prefix_tokens :].detach()
    cam = [max(0.0, float(weights @ token)) for token in patches]
    return torch.tensor(cam, dtype=image.dtype)


@pytest.mark.parametrize("kind", MODELS)
def test_grad_cam_weighs_channels_by_their_mean_gradient(kind: str) -> None:
    model, images = build(kind), random_images()
    maps = GradCAM()(model, images, TARGETS)
    assert (maps > 0).any()
    for found, image, target in zip(maps, images, TARGETS, strict=True):
        torch.testing.assert_close(found.flatten(), grad_cam(model, image, int(target)))
