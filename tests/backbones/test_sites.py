"""Sites name the same places in every architecture, and other architectures are refused by name."""

import pytest
import timm
import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from impact_lightning.backbones import Site, capture, check_supported, expand_sites, site_names, site_width
from tests.backbones import KINDS, random_images, tiny

BLOCK = ["resid_pre", "attn_in", "q", "k", "v", "attn_probs", "head_out", "attn_out"]
BLOCK += ["resid_mid", "mlp_in", "mlp_neuron", "mlp_out", "resid_post"]


def test_sites_come_in_the_order_of_execution() -> None:
    written_out = [f"blocks.{i}.{name}" for i in (0, 1) for name in BLOCK] + ["final_norm", "pooled", "logits"]
    assert site_names(tiny()) == written_out


@pytest.mark.parametrize("name", KINDS)
def test_width_is_the_last_dimension_of_what_is_captured(name: str) -> None:
    model = tiny(name)
    with torch.no_grad(), capture(model, "*") as activations:
        model(random_images())
    widths = {site: x.shape[-1] for site, x in activations.items() if not site.endswith("attn_probs")}
    assert widths == {site: site_width(model, site) for site in widths}


def test_attention_probabilities_have_no_width() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0\.attn_probs has one number for each pair of tokens"):
        site_width(tiny(), "blocks.0.attn_probs")


def test_a_distilled_model_has_no_single_input_of_the_head() -> None:
    assert "pooled" not in site_names(tiny("deit_tiny_distilled_patch16_224"))


@pytest.mark.parametrize("text", ["blocks.0.resid_pre", "blocks.11.mlp_neuron", "logits"])
def test_a_site_is_written_as_it_was_read(text: str) -> None:
    assert str(Site.parse(text)) == text


@pytest.mark.parametrize("text", ["blocks.0.neuron", "blocks.01.q", "blocks.-1.q", "blocks.0.logits", "q", ""])
def test_a_misspelt_site_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is no site; known are blocks.<i>.resid_pre"):
        Site.parse(text)


def test_patterns_select_in_the_order_of_execution_and_once() -> None:
    sites = expand_sites(tiny(), ["logits", "blocks.*.mlp_neuron", "blocks.1.mlp_*"])
    assert sites == ["blocks.0.mlp_neuron", "blocks.1.mlp_in", "blocks.1.mlp_neuron", "blocks.1.mlp_out", "logits"]


def test_one_pattern_needs_no_list() -> None:
    assert expand_sites(tiny(), "blocks.*.q") == ["blocks.0.q", "blocks.1.q"]


@pytest.mark.parametrize("pattern", ["blocks.2.mlp_neuron", "blocks.*.mlp_nueron"])
def test_an_unknown_site_names_the_closest_and_the_number_of_blocks(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"no site .* in this model of 2 blocks; .* blocks\.1\.mlp_neuron"):
        expand_sites(tiny(), ["logits", pattern])


@pytest.mark.parametrize(
    ("name", "class_name", "missing"),
    [
        ("swin_tiny_patch4_window7_224", "SwinTransformer", "it has no blocks"),
        ("eva02_tiny_patch14_224", "Eva", "a forward of its own"),
        ("vit_small_patch16_18x2_224", "ParallelThingsBlock", "it has no norm1, attn"),
        ("vit_base_patch16_rpn_224", "ResPostBlock", "it has no ls1, ls2"),
        ("vit_relpos_small_patch16_224", "VisionTransformerRelPos", "a forward of its own"),
        ("resnet18", "ResNet", "it has no patch_embed, blocks"),
    ],
)
def test_other_architectures_are_refused_by_name(name: str, class_name: str, missing: str) -> None:
    model = timm.create_model(name)
    with pytest.raises(ValueError, match=f"{class_name}, .*{missing}"):
        check_supported(model)


class AttentionOfItsOwn(Attention):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return x


def test_attention_with_a_forward_of_its_own_is_refused() -> None:
    model = tiny()
    model.get_submodule("blocks.0").attn = AttentionOfItsOwn(32)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn is a .*AttentionOfItsOwn, .* a forward of its own"):
        check_supported(model)


def test_gated_attention_is_refused() -> None:
    model = tiny()
    model.get_submodule("blocks.1.attn").gate = nn.Linear(32, 32)
    with pytest.raises(ValueError, match=r"blocks\.1\.attn has a gate"):
        check_supported(model)


def test_attention_of_another_output_width_is_refused() -> None:
    model = tiny()
    model.get_submodule("blocks.1.attn").proj = nn.Linear(32, 48)
    with pytest.raises(ValueError, match=r"blocks\.1 writes another width than the 32 channels"):
        check_supported(model)


def test_a_replaced_linear_is_refused() -> None:
    model = tiny()
    model.get_submodule("blocks.0.mlp").fc2 = nn.Identity()
    with pytest.raises(ValueError, match=r"blocks\.0\.mlp\.fc2 is a Identity"):
        check_supported(model)
