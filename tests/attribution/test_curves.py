"""Curves equal their protocols spelled out state by state, in any batches, from tokens and from pixels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.curves import CurveEngine, Subject
from impact_lightning.attribution.protocols import Chefer, CurveProtocol, Groups, Patch, Rise, Road
from impact_lightning.attribution.scores import Score, score
from impact_lightning.attribution.substrates import Black, BlurRise, Drop, Mean, Noise, Pixels, ZeroNorm
from impact_lightning.attribution.token_forward import TokenForward
from impact_lightning.metrics.area import area
from impact_lightning.types import UserError
from tests.attribution.curve_models import VARIANTS, convolution, pictures, relevance, vit

PIXELS = Pixels((0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
ROWS = torch.tensor([11, 4, 8])
LABELS = torch.tensor([0, 1, 2])


def subject(model: Any, *, batch_size: int = 32, images: Tensor | None = None, **known: Tensor) -> Subject:
    images = pictures() if images is None else images
    return CurveEngine(model, pixels=PIXELS, batch_size=batch_size).subject(images, ROWS, **{"labels": LABELS} | known)


def rise_spelled_out(model: Any, image: Tensor, saliency: np.ndarray, step: int, mode: str) -> np.ndarray:
    """One image at a time, one step at a time, as RISE publishes it: scatter from start to finish."""
    pixels = image[0, 0].numel()
    n_steps = (pixels + step - 1) // step
    target = int(model(image).argmax())
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    one = gaussian_filter(impulse, 5)
    kernel = np.zeros((3, 3, 11, 11))
    for channel in range(3):
        kernel[channel, channel] = one
    if mode == "deletion":
        current, finish = image.clone(), torch.zeros_like(image)
    else:
        current, finish = F.conv2d(image, torch.from_numpy(kernel), padding=5), image.clone()
    places = np.argsort(-saliency.reshape(-1), kind="stable")
    values = []
    for i in range(n_steps + 1):
        values.append(float(torch.softmax(model(current), dim=1)[0, target]))
        coords = places[step * i : step * (i + 1)]
        current = current.clone()
        current.view(3, -1)[:, coords] = finish.reshape(3, -1)[:, coords]
    return np.array(values)


@pytest.mark.parametrize("make", [vit, convolution])
@pytest.mark.parametrize("chunk", [16, 32, 50, 255, 300])
def test_rise_is_the_published_protocol(make: Callable[[], Any], chunk: int) -> None:
    model = make()
    found = subject(model, batch_size=7).curves(relevance(), Rise(chunk))
    saliency = F.interpolate(relevance()[:, None], (16, 16), mode="bilinear")[:, 0].numpy()
    for mode in ("deletion", "insertion"):
        for image in range(3):
            exact = rise_spelled_out(model, pictures()[image : image + 1], saliency[image], chunk, mode)
            np.testing.assert_allclose(found[mode].values[image].numpy(), exact, rtol=0, atol=1e-12)
            s = len(exact) - 1
            by_hand = (exact.sum() - exact[0] / 2 - exact[-1] / 2) / s
            assert area(found[mode])[image].item() == pytest.approx(by_hand, abs=1e-12)


def test_rise_in_single_precision_is_near() -> None:
    double, single = vit(), vit().float()
    exact = subject(double).curves(relevance(), Rise(50))
    near = subject(single, images=pictures().float()).curves(relevance(), Rise(50))
    for name in exact:
        torch.testing.assert_close(near[name].values, exact[name].values, rtol=0, atol=2e-6)


def test_refuses_half_precision_which_moves_areas_by_more_than_a_thousandth() -> None:
    with pytest.raises(UserError, match="single precision"), torch.autocast("cpu", torch.bfloat16):
        subject(vit().float(), images=pictures().float())
    with pytest.raises(UserError, match="single precision"):
        subject(vit().bfloat16(), images=pictures().bfloat16())


# ------------------------------------------------------------------------------------------ tokens and pixels


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_forward_from_tokens_is_the_model(variant: str) -> None:
    model = vit(**VARIANTS[variant])
    torch.testing.assert_close(TokenForward(model)(pictures()), model(pictures()), rtol=0, atol=1e-12)


def test_a_forward_from_tokens_is_the_distilled_model() -> None:
    model = vit("deit_tiny_distilled_patch16_224")
    engine = CurveEngine(model)
    assert engine.from_tokens is not None
    assert engine.from_tokens.is_short
    torch.testing.assert_close(engine(pictures()), model(pictures()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "protocol", [Patch(3, start=BlurRise()), Patch(5, substrate=Black()), Groups(4, resolution="patches")]
)
def test_patches_exchanged_as_tokens_are_patches_exchanged_as_pixels(variant: str, protocol: CurveProtocol) -> None:
    model = vit(**VARIANTS[variant])
    tokens, pixels = subject(model), subject(lambda images: model(images))
    assert tokens.engine.from_tokens is not None
    assert pixels.engine.from_tokens is None
    mine, theirs = tokens.curves(relevance(), protocol), pixels.curves(relevance(), protocol)
    for name in mine:
        torch.testing.assert_close(mine[name].values, theirs[name].values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("protocol", [Patch(1, start=BlurRise()), Groups(4, resolution="patches")])
def test_patches_that_a_convolutional_stem_mixes_are_exchanged_as_pixels(protocol: CurveProtocol) -> None:
    model = vit("vit_tiny_r_s16_p8_224", img_size=64, patch_size=8)
    images, maps = pictures(size=64), relevance(side=2)
    known, unknown = subject(model, images=images), subject(lambda images: model(images), images=images)
    assert known.engine.from_tokens is None
    mine, theirs = known.curves(maps, protocol), unknown.curves(maps, protocol)
    for name in mine:
        torch.testing.assert_close(mine[name].values, theirs[name].values, rtol=0, atol=1e-12)
        assert mine[name].values.std() > 1e-3
    with pytest.raises(UserError, match="embeds one by one can be dropped"):
        known.curves(maps, Patch(substrate=Drop()))
    with pytest.raises(UserError, match="HybridEmbed"):
        TokenForward(model)


def test_a_hook_on_what_would_be_left_out_is_called() -> None:
    model: Any = vit()
    seen: list[tuple[int, ...]] = []
    handle = model.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    images = pictures()
    curves = subject(model).curves(relevance(), Patch(8), names=["morf"])["morf"]
    handle.remove()
    assert {shape[1] for shape in seen} == {17}
    torch.testing.assert_close(
        curves.values, subject(model, images=images).curves(relevance(), Patch(8))["morf"].values
    )


def test_dropped_tokens_are_left_out() -> None:
    model = vit()
    maps = relevance()
    found = subject(model, batch_size=4).curves(maps, Patch(3, substrate=Drop()))
    residual = TokenForward(model).tokens(pictures()).residual
    target = model(pictures()).argmax(1)
    for image in range(3):
        places = np.argsort(-maps[image].flatten().numpy(), kind="stable")
        for point, k in enumerate((0, 3, 6, 9, 12, 15, 16)):
            stays = [0, *(1 + place for place in sorted(places[k:]))]
            logits = model.forward_head(model.norm(model.blocks(residual[image : image + 1, stays])))
            assert found["morf"].values[image, point].item() == pytest.approx(
                logits.softmax(1)[0, target[image]].item(), abs=1e-12
            )


# ------------------------------------------------------------------------------------------ sharing and batches


@pytest.mark.parametrize(
    "protocol", [Rise(40), Chefer(), Patch(3, start=Noise()), Groups(3), Road(), Patch(substrate=Mean())]
)
@pytest.mark.parametrize("make", [vit, convolution])
def test_batches_change_nothing(protocol: CurveProtocol, make: Callable[[], Any]) -> None:
    whole = subject(make(), batch_size=1000).curves(relevance(), protocol)
    for batch_size in (1, 7):
        parts = subject(make(), batch_size=batch_size).curves(relevance(), protocol)
        for name in whole:
            torch.testing.assert_close(parts[name].values, whole[name].values, rtol=0, atol=1e-9)


def test_images_do_not_depend_on_their_neighbours() -> None:
    whole = subject(vit()).curves(relevance(), Patch(3, start=Noise()))
    engine = CurveEngine(vit(), pixels=PIXELS)
    alone = engine.subject(pictures()[1:2], ROWS[1:2]).curves(relevance()[1:2], Patch(3, start=Noise()))
    for name in whole:
        torch.testing.assert_close(alone[name].values[0], whole[name].values[1], rtol=0, atol=1e-12)


def test_every_forward_is_made_once_and_batches_are_full() -> None:
    model, n, steps = convolution(), 3, 7
    engine = CurveEngine(model, pixels=PIXELS, batch_size=8)
    images = engine.subject(pictures(), ROWS, labels=LABELS)
    images.curves(relevance(), Rise(40))
    assert model.seen == n * (2 * (steps - 1) + 2) + 1  # one zero image for all
    assert sum(size == 8 for size in model.batches) == 2 * (n * (steps - 1) // 8)
    before = model.seen
    images.curves(relevance(seed=5), Rise(40))  # of another map: interior states alone
    assert model.seen - before == n * 2 * (steps - 1)


def test_one_baseline_for_both_curves_halves_the_end_points() -> None:
    model = convolution()
    subject(model).curves(relevance(), Patch(4), names=["morf", "insertion"])
    assert model.seen == 3 * (2 * 3 + 1) + 1


def test_insertion_is_the_reverse_of_removing_the_least_relevant_and_costs_nothing_more() -> None:
    model = convolution()
    found = subject(model).curves(relevance(), Patch(4), names=["lerf", "insertion"])
    assert model.seen == 3 * (3 + 1) + 1
    assert torch.equal(found["insertion"].values, found["lerf"].values.flip(1))
    assert torch.equal(found["insertion"].mass, found["lerf"].mass.flip(1))


def test_positive_perturbation_is_deletion_and_negative_insertion_at_what_stays() -> None:
    model = convolution(size=20)
    images = CurveEngine(model, pixels=PIXELS).subject(pictures(size=20), ROWS, labels=LABELS)
    same = images.curves(relevance(side=20, seed=2), Patch(40, substrate=Black(), score="accuracy"))
    chefer = images.curves(relevance(side=20, seed=2), Chefer())
    assert torch.equal(chefer["positive"].values, same["morf"].values[:, :10])
    assert torch.equal(chefer["negative"].values, same["lerf"].values[:, :10])
    assert torch.equal(chefer["negative"].values, same["insertion"].values.flip(1)[:, :10])


# ------------------------------------------------------------------------------------------ scores


def test_scores_are_of_the_class_of_the_clean_image() -> None:
    model = vit()
    images, targets = pictures(), torch.tensor([4, 0, 2])
    logits = model(images)
    assert torch.equal(subject(model).targets, logits.argmax(1))
    kinds: list[Score] = ["probability", "logit", "log_odds"]
    for kind in kinds:
        found = subject(model, targets=targets).curves(relevance(), Patch(4, score=kind))["morf"]
        p = logits.softmax(1)[torch.arange(3), targets]
        exact = {"probability": p, "logit": logits[torch.arange(3), targets], "log_odds": (p / (1 - p)).log()}[kind]
        torch.testing.assert_close(found.clean, exact, rtol=1e-9, atol=0)
        assert torch.equal(found.values[:, 0], found.clean)
    agreement = subject(model).curves(relevance(), Patch(4, score="agreement"))["morf"]
    assert agreement.clean.tolist() == [1, 1, 1]
    accuracy = subject(model).curves(relevance(), Patch(4, score="accuracy"))["morf"]
    assert accuracy.clean.tolist() == (logits.argmax(1) == LABELS).double().tolist()


def test_log_odds_stay_finite_where_a_probability_rounds_to_one() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0]])
    found = score(logits, "log_odds", torch.tensor([0]))
    assert found.item() == pytest.approx(60 - np.log(2))


def test_mass_is_the_relevance_of_what_is_removed() -> None:
    maps = relevance()
    found = subject(vit()).curves(maps, Patch(5))
    for image in range(3):
        descending = np.sort(maps[image].double().flatten().numpy())[::-1]
        sums = [descending[:k].sum() for k in (0, 5, 10, 15, 16)]
        np.testing.assert_allclose(found["morf"].mass[image], sums, atol=1e-12)
        np.testing.assert_allclose(found["insertion"].mass[image], descending.sum() - np.array(sums), atol=1e-12)
    assert found["morf"].fractions.tolist() == [0, 5 / 16, 10 / 16, 15 / 16, 1]


def test_a_constant_map_is_counted_and_removed_in_raster_order() -> None:
    maps = relevance()
    maps[1] = 0
    found = subject(vit()).curves(maps, Patch(4))
    raster = relevance()
    raster[1] = -torch.arange(16.0).view(4, 4)
    same = subject(vit()).curves(raster, Patch(4))
    assert found["morf"].is_constant.tolist() == [False, True, False]
    assert found["morf"].ties.tolist() == [0, 15, 0]
    assert torch.equal(found["morf"].values, same["morf"].values)


# ------------------------------------------------------------------------------------------ refusals


def test_refuses_a_model_in_training() -> None:
    with pytest.raises(UserError, match="eval"):
        CurveEngine(vit().train())


@pytest.mark.parametrize("side", [5, 8, 16])
def test_refuses_maps_that_are_not_of_the_patches(side: int) -> None:
    with pytest.raises(UserError, match=f"{side} x {side}"):
        subject(vit()).curves(relevance(side=side), Patch())


def test_refuses_maps_of_other_images_and_maps_that_are_not_finite() -> None:
    with pytest.raises(UserError, match="2 maps for 3 images"):
        subject(vit()).curves(relevance(n=2), Patch())
    maps = relevance()
    maps[0, 1, 1] = torch.nan
    for protocol in (Patch(), Rise(50)):
        with pytest.raises(UserError, match="not finite"):
            subject(vit()).curves(maps, protocol)


def test_refuses_what_is_missing_or_unknown() -> None:
    engine = CurveEngine(convolution())
    bare = engine.subject(pictures(), ROWS)
    with pytest.raises(UserError, match="black needs"):
        bare.curves(relevance(), Patch(substrate=Black()))
    with pytest.raises(UserError, match="labels"):
        bare.curves(relevance(), Patch(score="accuracy"))
    with pytest.raises(UserError, match="no curve 'rmof'"):
        bare.curves(relevance(), Patch(), names=["rmof"])
    with pytest.raises(UserError, match="dropped"):
        bare.curves(relevance(), Patch(substrate=Drop()))
    with pytest.raises(UserError, match="targets must be one number"):
        engine.subject(pictures(), ROWS, targets=torch.tensor([1]))
    with pytest.raises(UserError, match="classes of 0 to 4"):
        engine.subject(pictures(), ROWS, labels=torch.tensor([1, 2, 5]))
    with pytest.raises(UserError, match="batch_size"):
        CurveEngine(convolution(), batch_size=0)


def test_refuses_to_drop_everything_that_is_pooled() -> None:
    with pytest.raises(UserError, match="nothing is left"):
        subject(vit(**VARIANTS["average"])).curves(relevance(), Patch(substrate=Drop()))


def test_models_keep_their_flags() -> None:
    model: VisionTransformer = vit().requires_grad_(True)
    subject(model).curves(relevance(), Patch(4, start=ZeroNorm()))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_orders_in_which_no_map_has_a_part_are_drawn_once() -> None:
    model, protocol = convolution(), Patch(step=4)
    subject = CurveEngine(model).subject(pictures(), torch.arange(3))
    first = subject.curves(relevance(), protocol)
    seen = model.seen
    second = subject.curves(relevance(seed=5), protocol)
    assert model.seen - seen == 3 * (3 + 3)  # three steps of morf and of lerf, which insertion reads backwards
    alone = CurveEngine(convolution()).subject(pictures(), torch.arange(3)).curves(relevance(seed=5), protocol)
    for name, curves in second.items():
        torch.testing.assert_close(curves.values, alone[name].values)
    torch.testing.assert_close(second["random"].values, first["random"].values, rtol=0, atol=0)
    other = subject.curves(relevance(), Patch(step=4, seed=1))["random"]
    logits = subject.curves(relevance(), Patch(step=4, score="logit"))["random"]
    assert not torch.allclose(other.values, first["random"].values)
    assert not torch.allclose(logits.values, first["random"].values)
