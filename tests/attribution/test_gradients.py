"""Gradient maps are those of finite differences, are exact for linear models, and add up to the logit."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.gradients import GradientTimesInput, IntegratedGradients, SmoothGrad, pixel_gradients
from impact_lightning.attribution.method import patch_sums
from impact_lightning.types import UserError
from tests.attribution.literal import build, random_images

TARGETS = torch.tensor([1, 0, 4])


def by_patch(pixels: Tensor, side: int = 8) -> Tensor:
    """Sum `(B, h, w)` over patches, one by one."""
    rows = []
    for image in pixels:
        rows += [[[image[y : y + side, x : x + side].sum() for x in range(0, 32, side)] for y in range(0, 32, side)]]
    return torch.tensor(rows, dtype=pixels.dtype)


def gradients_by_hand(model: VisionTransformer, images: Tensor, targets: Tensor = TARGETS) -> Tensor:
    """Return the gradients, each image by itself."""
    found = []
    for image, target in zip(images, targets, strict=True):
        leaf = image.clone().requires_grad_()
        found.append(torch.autograd.grad(model(leaf[None])[0, target], leaf)[0])
    return torch.stack(found)


def linear_model() -> VisionTransformer:
    """A model whose logits are linear in the pixels: blocks that write nothing, norms that do nothing."""
    model = build("average")
    for block in model.blocks:
        for linear in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
            torch.nn.init.zeros_(linear.weight)  # type: ignore[arg-type, union-attr]
            torch.nn.init.zeros_(linear.bias)  # type: ignore[arg-type, union-attr]
    model.norm, model.fc_norm = torch.nn.Identity().eval(), torch.nn.Identity().eval()
    return model


def test_gradient_times_input() -> None:
    model, images = build("deit3"), random_images()
    pixels = (gradients_by_hand(model, images) * images).sum(1)
    torch.testing.assert_close(GradientTimesInput()(model, images, TARGETS), by_patch(pixels))
    torch.testing.assert_close(GradientTimesInput(absolute=True)(model, images, TARGETS), by_patch(pixels.abs()))


def test_the_gradient_is_the_slope_of_the_logit() -> None:
    model, images = build("plain"), random_images()
    direction = random_images(seed=7) * 1e-5
    _, gradients = pixel_gradients(model, images, TARGETS)
    rise = (model(images + direction) - model(images - direction)).gather(1, TARGETS[:, None])[:, 0] / 2
    torch.testing.assert_close((gradients * direction).sum((1, 2, 3)), rise.detach(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("baseline", ["zero_norm", "mean"])
def test_integrated_gradients_is_the_mean_along_the_path(baseline: str) -> None:
    model, images, steps = build("registers"), random_images(), 5
    start = torch.zeros_like(images) if baseline == "zero_norm" else images.mean((2, 3), keepdim=True)
    mean = torch.zeros_like(images)
    for j in range(1, steps + 1):
        mean += gradients_by_hand(model, start + (j - 0.5) / steps * (images - start)) / steps
    wanted = by_patch(((images - start) * mean).sum(1))
    for at_once in (1, 4, 100):
        method = IntegratedGradients(steps, baseline, at_once)  # type: ignore[arg-type]
        torch.testing.assert_close(method(model, images, TARGETS), wanted)


def test_integrated_gradients_is_exact_for_a_linear_model() -> None:
    model, images = linear_model(), random_images()
    maps, error = IntegratedGradients(steps=1).with_error(model, images, TARGETS)
    torch.testing.assert_close(error, torch.zeros(3).double(), rtol=0, atol=1e-11)
    torch.testing.assert_close(maps, GradientTimesInput()(model, images, TARGETS))


def test_integrated_gradients_adds_up_with_enough_steps() -> None:
    model, images = build("plain"), random_images() / 4
    errors = [IntegratedGradients(steps).with_error(model, images, TARGETS)[1].abs().max() for steps in (4, 400)]
    rise = (model(images) - model(torch.zeros_like(images))).gather(1, TARGETS[:, None]).abs().max()
    assert errors[1] <= 1e-2 * rise
    assert errors[1] <= errors[0] / 10


def test_smooth_grad_without_noise_is_the_gradient() -> None:
    model, images = build("plain"), random_images()
    wanted = by_patch(gradients_by_hand(model, images).abs().sum(1))
    torch.testing.assert_close(SmoothGrad(samples=3, sigma=0.0)(model, images, TARGETS), wanted)


def test_smooth_grad_does_not_depend_on_how_copies_are_grouped() -> None:
    model, images = build("plain"), random_images()
    maps = [SmoothGrad(samples=5, at_once=n)(model, images, TARGETS) for n in (1, 2, 64)]
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0])
    assert not torch.allclose(SmoothGrad(samples=5, seed=1)(model, images, TARGETS), maps[0])


def test_sums_over_patches_reach_over_padded_borders() -> None:
    model = build("plain", dynamic_img_size=True)
    model.patch_embed.dynamic_img_pad = True
    sums = patch_sums(model, torch.ones(1, 9, 20))
    assert sums.tolist() == [[[64.0, 64.0, 32.0], [8.0, 8.0, 4.0]]]


@pytest.mark.parametrize("make", [lambda: IntegratedGradients(steps=0), lambda: SmoothGrad(samples=0)])
def test_a_mean_of_nothing_is_refused(make: type) -> None:
    with pytest.raises(UserError, match="0"):
        make()
