"""Maps by masking are loops over masks."""

import math

import pytest
import torch
from torch.nn import functional as F

from impact_lightning.attribution.masking import RISE, Occlusion
from impact_lightning.types import UserError
from tests.attribution.literal import build, random_images

TARGETS = torch.tensor([1, 0, 4])


@pytest.mark.parametrize("score", ["probability", "logit"])
@pytest.mark.parametrize("at_once", [1, 7, 100])
@torch.no_grad()
def test_occlusion_is_a_loop_over_patches(score: str, at_once: int) -> None:
    model, images = build("deit3"), random_images()
    maps = Occlusion(score, at_once)(model, images, TARGETS)  # type: ignore[arg-type]
    for i, target in enumerate(TARGETS.tolist()):
        for y in range(4):
            for x in range(4):
                hidden = images[i : i + 1].clone()
                hidden[:, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = 0
                before, after = model(images[i : i + 1])[0], model(hidden)[0]
                if score == "probability":
                    before, after = before.softmax(0), after.softmax(0)
                assert maps[i, y, x].item() == pytest.approx((before - after)[target].item(), abs=1e-12)


@torch.no_grad()
def test_rise_is_a_loop_over_masks() -> None:
    model, images = build("plain"), random_images()
    n, cells, density = 11, 3, 0.4
    generator = torch.Generator().manual_seed(5)
    total, shown = torch.zeros(3, 32, 32, dtype=torch.float64), torch.zeros(32, 32, dtype=torch.float64)
    for _ in range(n):
        coarse = (torch.rand(1, 1, cells, cells, generator=generator) < density).float()
        y, x = (int(torch.randint(math.ceil(32 / cells), (), generator=generator)) for _ in range(2))
        side = (cells + 1) * math.ceil(32 / cells)
        mask = F.interpolate(coarse, size=(side, side), mode="bilinear")[0, 0, y : y + 32, x : x + 32].double()
        for i, target in enumerate(TARGETS.tolist()):
            total[i] += model(images[i : i + 1] * mask)[0].softmax(0)[target] * mask
        shown += mask
    wanted = total.reshape(3, 4, 8, 4, 8).mean((2, 4)) / shown.reshape(4, 8, 4, 8).mean((1, 3))
    for at_once in (4, 64):
        found = RISE(n, cells, density, seed=5, at_once=at_once)(model, images, TARGETS)
        torch.testing.assert_close(found, wanted)
    assert not torch.allclose(RISE(n, cells, density, seed=6)(model, images, TARGETS), wanted)


@torch.no_grad()
def test_rise_of_a_model_that_sees_nothing_is_the_same_everywhere() -> None:
    model, images = build("plain"), random_images()
    model.patch_embed.proj.weight.zero_()
    maps = RISE(40, 3)(model, images, TARGETS)
    torch.testing.assert_close(maps, maps[:, :1, :1].expand_as(maps))


@pytest.mark.parametrize("make", [lambda: RISE(masks=0), lambda: RISE(density=0.0), lambda: Occlusion(at_once=0)])
def test_what_makes_no_masks_is_refused(make: type) -> None:
    with pytest.raises(UserError, match="at least 1"):
        make()
