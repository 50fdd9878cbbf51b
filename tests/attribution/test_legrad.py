"""LeGrad is its definition, with gradients through plain attention."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.legrad import LeGrad
from tests.attribution import literal
from tests.attribution.literal import MODELS, build, random_images

TARGETS = torch.tensor([1, 0, 4])


def legrad(model: VisionTransformer, image: Tensor, target: int) -> Tensor:
    tapes, _, _ = literal.forward(model, image.clone().requires_grad_())
    total = torch.zeros(())
    for tape in tapes:
        score = model.forward_head(model.norm(tape.x2)[None])[0, target]
        (gradient,) = torch.autograd.grad(score, tape.probs, retain_graph=True)
        total = total + gradient.clamp(min=0).mean((0, 1))
    return total[model.num_prefix_tokens :]


@pytest.mark.parametrize("kind", MODELS)
def test_legrad_is_the_positive_gradient_by_attention(kind: str) -> None:
    model, images = build(kind), random_images()
    for found, image, target in zip(LeGrad()(model, images, TARGETS), images, TARGETS, strict=True):
        torch.testing.assert_close(found.flatten(), legrad(model, image, int(target)))
