"""Substrates are what their definitions say, in the pixels of the model."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import nn

from impact_lightning.attribution.substrates import (
    Black,
    BlurGauss,
    BlurRise,
    Mean,
    Min,
    Noise,
    Pixels,
    Substrate,
    ZeroNorm,
    reflected_gaussian,
)
from impact_lightning.types import UserError
from tests.attribution.curve_models import pictures

PIXELS = Pixels((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
ROWS = torch.tensor([5, 6, 8])


def impulse_kernel(length: int, sigma: float) -> np.ndarray:
    impulse = np.zeros((length, length))
    impulse[length // 2, length // 2] = 1
    return np.asarray(gaussian_filter(impulse, sigma))


@pytest.mark.parametrize(("length", "sigma"), [(11, 5.0), (31, 31.0), (51, 50.0), (5, 0.7)])
def test_taps_are_those_of_a_filtered_impulse(length: int, sigma: float) -> None:
    taps = reflected_gaussian(length, sigma).numpy()
    np.testing.assert_allclose(np.outer(taps, taps), impulse_kernel(length, sigma), atol=1e-15)


def test_the_blur_of_rise_is_a_convolution_with_zeros_around() -> None:
    images = pictures(size=20)
    kernel = torch.from_numpy(impulse_kernel(11, 5.0))
    one = F.conv2d(images.flatten(0, 1)[:, None], kernel[None, None], padding=5).view_as(images)
    torch.testing.assert_close(BlurRise()(images, None, ROWS), one, rtol=0, atol=1e-14)


def test_a_gaussian_blur_is_that_of_scipy() -> None:
    images = pictures(size=20)
    one = gaussian_filter(images.numpy(), 1.5, axes=(2, 3), mode="nearest")
    np.testing.assert_allclose(BlurGauss(1.5)(images, None, ROWS).numpy(), one, atol=1e-14)


def test_constants_are_of_pixels_or_of_normalised_images() -> None:
    images = pictures()
    back = Black()(images, PIXELS, ROWS) * torch.tensor(PIXELS.std)[:, None, None].double() + torch.tensor(
        PIXELS.mean
    ).double().view(3, 1, 1)
    assert back.shape == (1, 3, 16, 16)
    torch.testing.assert_close(back, torch.zeros_like(back), rtol=0, atol=1e-7)
    assert (ZeroNorm()(images, None, ROWS) == 0).all()
    assert torch.equal(Mean()(images, None, ROWS)[1, 2, 3, 4], images[1, 2].mean())
    assert (Min()(images, None, ROWS)[1] == images[1].min()).all()


def test_noise_depends_on_the_image_and_not_on_the_batch() -> None:
    images = pictures()
    noise = Noise(std=2.0, seed=3)(images, None, ROWS)
    assert torch.equal(Noise(std=2.0, seed=3)(images[1:2], None, ROWS[1:2])[0], noise[1])
    assert noise.std() == pytest.approx(2, abs=0.1)
    assert not torch.equal(Noise(std=2.0, seed=4)(images, None, ROWS), noise)


@pytest.mark.parametrize("substrate", [ZeroNorm(), Black(), Mean(), Min(), BlurRise(), BlurGauss(1.0), Noise()])
def test_images_do_not_depend_on_their_batch(substrate: Substrate) -> None:
    images = pictures()
    whole = substrate(images, PIXELS, ROWS)
    assert len(whole) == (1 if substrate.is_shared else 3)
    for image in range(3):
        alone = substrate(images[image : image + 1], PIXELS, ROWS[image : image + 1])
        torch.testing.assert_close(whole.expand_as(images)[image], alone[0], rtol=0, atol=1e-14)


def test_pixels_are_those_of_the_model() -> None:
    augreg, deit = (timm.create_model(name) for name in ("vit_tiny_patch16_224", "deit3_small_patch16_224"))
    assert Pixels.of(augreg) == Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert Pixels.of(deit).mean == (0.485, 0.456, 0.406)


def test_refuses_what_is_not_known() -> None:
    with pytest.raises(UserError, match="pixels"):
        Pixels.of(nn.Linear(2, 2))
    with pytest.raises(UserError, match="black needs"):
        Black()(pictures(), None, ROWS)
    with pytest.raises(UserError, match="odd"):
        BlurRise(length=10)
    with pytest.raises(UserError, match="sigma"):
        BlurGauss(0.0)
