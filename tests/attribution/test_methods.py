"""Every method keeps the contract: raw maps of patches, image by image, of a model that is left as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from impact_lightning.attribution.attention_maps import RawAttention, Rollout
from impact_lightning.attribution.baselines import Centre, Random
from impact_lightning.attribution.grad_cam import GradCAM
from impact_lightning.attribution.gradients import GradientTimesInput, IntegratedGradients, SmoothGrad
from impact_lightning.attribution.legrad import LeGrad
from impact_lightning.attribution.masking import RISE, Occlusion
from impact_lightning.attribution.method import Method
from impact_lightning.attribution.transformer_attribution import TransformerAttribution
from impact_lightning.backbones import Backbone
from impact_lightning.types import UserError
from tests.attribution.literal import SMALL, build, random_images

TARGETS = torch.tensor([1, 0, 4])
METHODS: dict[str, Method] = {
    "transformer attribution": TransformerAttribution(),
    "attention alone": TransformerAttribution("attention"),
    "raw attention": RawAttention(),
    "rollout": Rollout(),
    "gradient x input": GradientTimesInput(),
    "integrated gradients": IntegratedGradients(steps=3, at_once=4),
    "SmoothGrad": SmoothGrad(samples=3, at_once=2),
    "Grad-CAM": GradCAM(),
    "LeGrad": LeGrad(),
    "RISE": RISE(masks=9, cells=3, at_once=4),
    "occlusion": Occlusion(at_once=5),
    "Random": Random(),
    "Centre": Centre(),
}
WITHOUT_MODEL = ("Random", "Centre")
WITHOUT_POOLING = (
    *WITHOUT_MODEL,
    "gradient x input",
    "integrated gradients",
    "SmoothGrad",
    "Grad-CAM",
    "RISE",
    "occlusion",
)
each_method = pytest.mark.parametrize("name", METHODS)
each_reader = pytest.mark.parametrize("name", [name for name in METHODS if name not in WITHOUT_MODEL])
each_pooled = pytest.mark.parametrize("name", [name for name in METHODS if name not in WITHOUT_POOLING])


@each_method
def test_a_batch_is_its_images(name: str) -> None:
    model, images = build("deit3"), random_images()
    maps = METHODS[name](model, images, TARGETS)
    assert maps.shape == (3, 4, 4)
    assert maps.dtype == torch.float64
    assert not maps.requires_grad
    for i in range(3):
        one = METHODS[name](model, images[i : i + 1], TARGETS[i : i + 1])
        torch.testing.assert_close(one[0], maps[i], rtol=1e-9, atol=1e-12)


@each_method
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_modes_around_it_change_nothing(name: str, mode: Callable[[], Any]) -> None:
    model, images = build("registers").float(), random_images().float()
    wanted = METHODS[name](model, images, TARGETS)
    with mode():
        found = METHODS[name](model, images + 0, TARGETS + 0)
    assert (found - wanted).abs().max() <= 1e-3 * wanted.abs().max()  # bfloat16 would leave two digits


def footprint(model: VisionTransformer) -> list[Any]:
    """Return what a method may not change."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    fused = [block.attn.fused_attn for block in model.blocks]  # type: ignore[union-attr]
    values = [p.detach().clone().numpy().tobytes() for p in model.parameters()]
    return [hooks, flags, fused, values, torch.is_grad_enabled(), model.training, "forward" in vars(model)]


@each_method
@pytest.mark.parametrize("is_frozen", [True, False])
def test_the_model_is_left_as_it_was(name: str, is_frozen: bool) -> None:
    model = build("plain").requires_grad_(not is_frozen)
    before = footprint(model)
    METHODS[name](model, random_images(), TARGETS)
    assert footprint(model) == before


@each_reader
def test_a_model_that_fails_is_left_as_it_was(name: str) -> None:
    model = build("plain")

    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    model.blocks[2].norm2 = Failing().eval()
    before = footprint(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        METHODS[name](model, random_images(), TARGETS)
    assert footprint(model) == before


@each_reader
def test_logits_that_are_not_finite_are_refused(name: str) -> None:
    images = random_images()
    images[1, 0, 3, 3] = torch.nan
    with pytest.raises(UserError, match=r"of image .* not finite"):
        METHODS[name](build("plain"), images, TARGETS)


@each_method
def test_takes_grids_that_are_no_squares(name: str) -> None:
    model, images = build("plain", dynamic_img_size=True), random_images(size=(24, 40))
    assert METHODS[name](model, images, TARGETS).shape == (3, 3, 5)


@each_pooled
@pytest.mark.parametrize("pooling", ["map", "max", "avgmax"])
def test_poolings_without_a_rule_are_refused_by_name(name: str, pooling: str) -> None:
    args = {**SMALL, "global_pool": pooling, "class_token": False}
    model = Backbone("vit_tiny_patch16_224", model_args=args, num_classes=5).build().eval().double()
    with pytest.raises(UserError, match=f"global_pool '{pooling}'"):
        METHODS[name](model, random_images(), TARGETS)


@each_method
def test_a_model_in_training_mode_is_refused(name: str) -> None:
    model = build("plain")
    model.blocks[1].attn.train()  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"blocks\.1\.attn is in training mode"):
        METHODS[name](model, random_images(), TARGETS)


REFUSED = {
    "target 5 of image 1 is no class: the model has 5": (random_images(), torch.tensor([0, 5, 0])),
    "target -1 of image 0 is no class": (random_images(), torch.tensor([-1, 5, 0])),
    "each of 3 images needs an int64": (random_images(), torch.tensor([0, 1])),
    r"targets are \(3,\) torch.float32": (random_images(), torch.ones(3)),
    "the images are torch.float32 and the weights are torch.float64": (random_images().float(), TARGETS),
    r"the images are \(3, 1, 32, 32\), the model takes \(B, 3, h, w\)": (random_images()[:, :1], TARGETS),
    r"the images are \(24, 40\) and the model takes \(32, 32\)": (random_images(size=(24, 40)), TARGETS),
}


@pytest.mark.parametrize("message", REFUSED)
def test_inputs_that_do_not_fit_are_refused(message: str) -> None:
    with pytest.raises(UserError, match=message):
        Centre()(build("plain"), *REFUSED[message])


def swiglu() -> VisionTransformer:
    args = {**SMALL, "depth": 1}
    return Backbone("vit_giant_patch14_dinov2", model_args=args, num_classes=5).build().eval().double()


def test_gated_units_are_refused_by_relevance_alone() -> None:
    images = random_images()
    with pytest.raises(UserError, match=r"blocks\.0\.mlp is a .*Glu"):
        TransformerAttribution()(swiglu(), images, TARGETS)
    assert TransformerAttribution("attention")(swiglu(), images, TARGETS).shape == (3, 4, 4)


def tiny(**args: Any) -> VisionTransformer:
    return VisionTransformer(**{**SMALL, "num_classes": 5, **args}).eval().double()


def with_gate() -> VisionTransformer:
    model = tiny()
    model.blocks[1].attn.gate = nn.Linear(24, 24).double()  # type: ignore[union-attr]
    return model


def with_two_layer_head() -> Any:
    model: Any = tiny()
    model.head = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 5)).double().eval()
    return model


def with_other_embedding() -> Any:
    class Stem(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model: Any = tiny()
    model.patch_embed = Stem().eval()
    return model


def res_post() -> VisionTransformer:
    from timm.models.vision_transformer import ResPostBlock

    return tiny(block_fn=ResPostBlock)


def parallel() -> VisionTransformer:
    from timm.models.vision_transformer import ParallelScalingBlock

    return tiny(block_fn=ParallelScalingBlock)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_gate, r"blocks\.1\.attn has a gate"),
        (with_two_layer_head, "head is a Sequential"),
        (with_other_embedding, "patch_embed is a Stem"),
        (res_post, "blocks.0 is a .*ResPostBlock"),
        (parallel, "blocks.0 is a .*ParallelScalingBlock"),
        (lambda: tiny(num_classes=0), "no classes"),
        (lambda: tiny().bfloat16(), "weights are torch.bfloat16"),
    ],
)
def test_architectures_without_rules_are_refused_by_name(make: Callable[[], VisionTransformer], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TransformerAttribution()(make(), random_images(), TARGETS)


def test_checkpointing_is_refused() -> None:
    model = tiny()
    model.set_grad_checkpointing()
    with pytest.raises(UserError, match="checkpointing"):
        GradCAM()(model, random_images(), TARGETS)
