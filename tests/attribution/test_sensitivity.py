"""Random removals and noisy copies are functions of the image, and what they cost is what the model says."""

import pytest
import torch
from torch import Tensor

from impact_lightning.attribution.curves import CurveEngine
from impact_lightning.attribution.sensitivity import drops, noisy_maps, random_squares, random_subsets
from impact_lightning.attribution.substrates import BlurRise, Drop, Pixels
from impact_lightning.metrics.sensitivity_n import sensitivity_n
from impact_lightning.types import UserError
from tests.attribution.curve_models import convolution, pictures, relevance, vit

ROWS = torch.tensor([11, 4, 8])


def test_subsets_have_one_size_and_depend_on_the_image() -> None:
    found = random_subsets(ROWS, (4, 5), share=0.2, n=50)
    assert found.shape == (3, 50, 4, 5)
    assert (found.flatten(2).sum(2) == 4).all()
    assert torch.equal(random_subsets(ROWS[1:2], (4, 5), share=0.2, n=50)[0], found[1])
    assert found.flatten(2).double().mean((0, 1)).sub(0.2).abs().max() < 0.12  # every patch in its turn
    assert not torch.equal(found, random_subsets(ROWS, (4, 5), share=0.2, n=50, seed=1))


def test_squares_lie_inside_and_reach_every_place() -> None:
    found = random_squares(ROWS, (4, 6), side=3, n=60)
    assert (found.flatten(2).sum(2) == 9).all()
    rows, columns = found.any(3), found.any(2)
    assert (rows.sum(2) == 3).all()
    assert (columns.sum(2) == 3).all()
    assert {tuple(row) for row in rows.flatten(0, 1).tolist()} == {(True,) * 3 + (False,), (False,) + (True,) * 3}
    assert len({tuple(row) for row in columns.flatten(0, 1).tolist()}) == 4
    assert torch.equal(random_squares(ROWS[1:2], (4, 6), side=3, n=60)[0], found[1])


@pytest.mark.parametrize("make", [vit, convolution])
def test_a_drop_is_what_the_model_loses(make: type) -> None:
    model = make()
    images, maps = pictures(), relevance()
    engine = CurveEngine(model, pixels=Pixels((0.5,) * 3, (0.5,) * 3), batch_size=7)
    removed = random_subsets(ROWS, (4, 4), share=0.25, n=6)
    found = drops(engine.subject(images, ROWS), maps, removed, substrate=BlurRise())
    blurred = BlurRise()(images, None, ROWS)
    clean = model(images).softmax(1)
    target = clean.argmax(1)
    for image in range(3):
        for sample in range(6):
            pixels = removed[image, sample].repeat_interleave(4, 0).repeat_interleave(4, 1)
            mixed = torch.where(pixels, blurred[image], images[image])
            left = model(mixed[None]).softmax(1)[0, target[image]]
            assert found.drops[image, sample].item() == pytest.approx(
                (clean[image, target[image]] - left).item(), abs=1e-12
            )
            mass = maps[image][removed[image, sample]].double().sum()
            assert found.mass[image, sample].item() == pytest.approx(mass.item())


def test_a_linear_model_is_explained_by_its_own_terms() -> None:
    weight = torch.randn(3 * 16 * 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def model(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight

    images = pictures()
    target = model(images).argmax(1)
    terms = (images * weight.T[target].view_as(images)).sum(1)
    maps = terms.unfold(1, 4, 4).unfold(2, 4, 4).sum((3, 4))  # (B, 16, 16) -> (B, 4, 4)
    removed = random_subsets(ROWS, (4, 4), share=0.25, n=20)
    found = drops(CurveEngine(model).subject(images, ROWS), maps, removed, score="logit")
    torch.testing.assert_close(found.mass, found.drops, rtol=0, atol=1e-4)
    torch.testing.assert_close(sensitivity_n(*found), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-6)


def test_dropped_tokens_are_a_substrate_too() -> None:
    removed = random_subsets(ROWS, (4, 4), share=0.25, n=6)
    found = drops(CurveEngine(vit()).subject(pictures(), ROWS), relevance(), removed, substrate=Drop())
    assert found.drops.isfinite().all()


def test_noise_is_uniform_and_depends_on_the_image() -> None:
    images = pictures()
    found = noisy_maps(lambda noisy: noisy.mean(1), images, ROWS, radius=0.5, n=4)
    alone = noisy_maps(lambda noisy: noisy.mean(1), images[1:2], ROWS[1:2], radius=0.5, n=4)
    assert found.shape == (3, 4, 16, 16)
    assert torch.equal(alone[0], found[1])
    noise = noisy_maps(lambda noisy: noisy[:, 0], torch.zeros_like(images), ROWS, radius=0.5, n=4)
    assert -0.5 <= noise.min() < -0.48
    assert 0.48 < noise.max() <= 0.5


def test_refuses_removals_that_do_not_fit() -> None:
    subject = CurveEngine(vit()).subject(pictures(), ROWS)
    with pytest.raises(UserError, match="removed"):
        drops(subject, relevance(), torch.ones(3, 2, 5, 4, dtype=torch.bool))
    uneven = random_subsets(ROWS, (4, 4), share=0.25, n=6)
    uneven[1, 0] = False
    with pytest.raises(UserError, match="as many of every image"):
        drops(subject, relevance(), uneven, substrate=Drop())
    with pytest.raises(UserError, match="share"):
        random_subsets(ROWS, (4, 4), share=1.0, n=2)
    with pytest.raises(UserError, match="side"):
        random_squares(ROWS, (4, 4), side=5, n=2)
