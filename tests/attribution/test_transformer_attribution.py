"""Transformer attribution is what its rules say word by word, image by image, and it leaves the model as it was."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.method import differentiating
from impact_lightning.attribution.transformer_attribution import Sweep, TransformerAttribution
from impact_lightning.backbones.abs_topk import ActivationTopK
from impact_lightning.types import UserError
from tests.attribution import literal
from tests.attribution.literal import MODELS, build, random_images

TARGETS = torch.tensor([1, 0, 4])
VARIANTS = {
    "as published": TransformerAttribution(),
    "from the second block": TransformerAttribution(start_block=1),
    "attention alone": TransformerAttribution("attention"),
    "rows normalised": TransformerAttribution(row_normalise=True),
    "last block alone": TransformerAttribution(start_block=-1),
    "reported rules": TransformerAttribution(rules="impact_reported"),
}
REPORTED = ("as published", "reported rules")


def by_hand(method: TransformerAttribution, model: VisionTransformer, images: Tensor) -> Tensor:
    rows = [
        literal.transformer_attribution(
            model,
            image,
            int(target),
            relevance=method.relevance,
            rules=method.rules,
            start_block=range(len(model.blocks))[method.start_block],
            row_normalise=method.row_normalise,
        )
        for image, target in zip(images, TARGETS, strict=True)
    ]
    return torch.stack(rows)


def assert_same_maps(found: Tensor, wanted: Tensor, tolerance: float = 1e-8) -> None:
    found = found.flatten(1)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    torch.testing.assert_close(found.argsort(dim=1), wanted.argsort(dim=1))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_literal_rules(kind: str, variant: str) -> None:
    model, images, method = build(kind), random_images(), VARIANTS[variant]
    assert_same_maps(method(model, images, TARGETS), by_hand(method, model, images))


@pytest.mark.parametrize("variant", ["as published", "attention alone"])
def test_equals_the_literal_rules_with_sparse_activations(variant: str) -> None:
    model, images, method = build("deit3", topk=ActivationTopK(0.5)), random_images(), VARIANTS[variant]
    assert_same_maps(method(model, images, TARGETS), by_hand(method, model, images))


def test_equals_the_literal_rules_on_a_grid_that_is_no_square() -> None:
    model, images = build("plain"), random_images(size=(32, 48))
    model.set_input_size((32, 48))
    maps = TransformerAttribution()(model, images, TARGETS)
    assert maps.shape == (3, 4, 6)
    assert_same_maps(maps, by_hand(TransformerAttribution(), model, images))


def test_takes_the_grid_of_the_images() -> None:
    model, images = build("plain", dynamic_img_size=True), random_images(size=(24, 40))
    maps = TransformerAttribution()(model, images, TARGETS)
    assert maps.shape == (3, 3, 5)


def test_the_literal_rules_are_asked_of_layer_scale_of_both_signs() -> None:
    gammas = [parameter for name, parameter in build("deit3").named_parameters() if name.endswith("gamma")]
    assert len(gammas) == 6
    assert all((gamma < 0).any() and (gamma > 0).any() for gamma in gammas)


@pytest.mark.parametrize("density", [0.5, 1 / 64])
def test_float32_equals_float64_with_sparse_weights(density: float) -> None:
    model = build("plain", embed_dim=192)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.blocks:
            for name, parameter in block.named_parameters():
                if name.endswith("weight") and parameter.ndim == 2:
                    parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
    images = random_images()
    wanted = by_hand(TransformerAttribution(), model, images)
    found = TransformerAttribution()(model.float(), images.float(), TARGETS).double().flatten(1)
    # relevance is divided by outputs and scores close to zero, which float32 knows to a few digits only
    assert (found - wanted).abs().max() <= 2e-2 * wanted.abs().max()


@pytest.mark.parametrize("kind", MODELS)
def test_relevance_is_kept_from_block_to_block(kind: str) -> None:
    model, images = build(kind), random_images()
    with differentiating(images):
        sweep = Sweep(model, images, TARGETS, 0, "lrp")
        assert sweep.relevance is not None
        wanted = sweep.relevance.sum((1, 2))
        for i in range(len(model.blocks))[:0:-1]:
            sweep.descend(i)
            torch.testing.assert_close(sweep.relevance.sum((1, 2)), wanted, atol=1e-5, rtol=0)
    if model.global_pool == "token":  # the mean of a channel may be of negative tokens alone, and its relevance dies
        torch.testing.assert_close(wanted, torch.ones(3).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["deit3", "average", "distilled"])
def test_relevance_of_every_token_equals_the_literal_rules(kind: str) -> None:
    model, images = build(kind), random_images()
    with differentiating(images):
        sweep = Sweep(model, images, TARGETS, 0, "lrp")
        sweep.descend(2)
        sweep.descend(1)
    assert sweep.relevance is not None
    for found, image, target in zip(sweep.relevance, images, TARGETS, strict=True):
        wanted = literal.relevances(model, image, int(target))[1]
        assert (found - wanted).abs().max() <= 1e-8 * wanted.abs().max()


def test_start_block_must_be_a_block() -> None:
    with pytest.raises(UserError, match="start_block 3: the model has 3 blocks"):
        TransformerAttribution(start_block=3)(build("plain"), random_images(), TARGETS)


def test_reported_rules_differ_where_there_is_layer_scale_and_where_there_is_none() -> None:
    for kind in ("deit3", "plain"):
        model, images = build(kind), random_images()
        published, reported = (method(model, images, TARGETS) for method in (VARIANTS[n] for n in REPORTED))
        assert (published - reported).abs().max() > 1e-3 * published.abs().max()


def test_reported_rules_keep_relevance_without_layer_scale() -> None:
    model, images = build("plain"), random_images()
    with differentiating(images):
        sweep = Sweep(model, images, TARGETS, 0, "lrp", "impact_reported")
        for i in (2, 1):
            sweep.descend(i)
    assert sweep.relevance is not None
    torch.testing.assert_close(sweep.relevance.sum((1, 2)), torch.ones(3).double(), atol=1e-5, rtol=0)


def test_attention_has_no_rules() -> None:
    with pytest.raises(UserError, match="rules 'impact_reported' are of relevance 'lrp'"):
        TransformerAttribution("attention", rules="impact_reported")
