"""Taps read what the model computes, change what flows on, and leave nothing behind."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from timm.layers.mlp import GluMlp, SwiGLU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from impact_lightning.backbones import capture, patch, site_names
from tests.backbones import KINDS, random_images, tiny
from tests.distributed import run_distributed


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    """Tests of gradients turn them on."""
    with torch.no_grad():
        yield


def block_by_hand(block: Any, x: Tensor) -> dict[str, Tensor]:
    """Return every site of a block, with plain attention."""
    attn, mlp = block.attn, block.mlp
    n_batch, n_tokens, _ = x.shape
    heads, width = attn.num_heads, attn.proj.in_features // attn.num_heads
    sites = {"resid_pre": x, "attn_in": block.norm1(x)}

    qkv = sites["attn_in"] @ attn.qkv.weight.T
    if attn.qkv.bias is not None:
        qkv = qkv + attn.qkv.bias
    sites["q"], sites["k"], sites["v"] = qkv.split(heads * width, dim=-1)
    by_head = {name: sites[name].reshape(n_batch, n_tokens, heads, width) for name in "qkv"}
    output = torch.empty_like(by_head["v"])
    probs = torch.empty(n_batch, heads, n_tokens, n_tokens, dtype=x.dtype)
    for b in range(n_batch):
        for h in range(heads):
            q, k, v = attn.q_norm(by_head["q"][b, :, h]), attn.k_norm(by_head["k"][b, :, h]), by_head["v"][b, :, h]
            scores = (q @ k.T / math.sqrt(width)).exp()
            probs[b, h] = scores / scores.sum(dim=1, keepdim=True)
            output[b, :, h] = probs[b, h] @ v
    sites["attn_probs"] = probs
    sites["head_out"] = attn.norm(output.reshape(n_batch, n_tokens, heads * width))
    sites["attn_out"] = block.ls1(attn.proj(sites["head_out"]))
    sites["resid_mid"] = x + sites["attn_out"]

    sites["mlp_in"] = y = block.norm2(sites["resid_mid"])
    if isinstance(mlp, SwiGLU):
        neuron = mlp.act(mlp.fc1_g(y)) * mlp.fc1_x(y)
    elif isinstance(mlp, GluMlp):
        gate, value = mlp.fc1(y).chunk(2, dim=-1)
        neuron = mlp.act(gate) * value
    else:
        neuron = mlp.act(mlp.fc1(y))
    sites["mlp_neuron"] = mlp.norm(neuron)
    sites["mlp_out"] = block.ls2(mlp.fc2(sites["mlp_neuron"]))
    sites["resid_post"] = sites["resid_mid"] + sites["mlp_out"]
    return sites


def embed(model: VisionTransformer, images: Tensor) -> Tensor:
    x: Tensor = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    return x


def by_hand(model: VisionTransformer, images: Tensor) -> dict[str, Tensor]:
    """Return every site of the model, from the embedding to the logits."""
    x, sites = embed(model, images), dict[str, Tensor]()
    for i, block in enumerate(model.blocks):
        of_block = block_by_hand(block, x)
        sites |= {f"blocks.{i}.{name}": value for name, value in of_block.items()}
        x = of_block["resid_post"]
    sites["final_norm"] = x = model.norm(x)
    if isinstance(head_dist := getattr(model, "head_dist", None), nn.Module):
        sites["logits"] = (model.head(x[:, 0]) + head_dist(x[:, 1])) / 2
    else:
        sites["pooled"] = model.fc_norm(model.pool(x))
        sites["logits"] = model.head(sites["pooled"])
    return sites


def unchanged(x: Tensor) -> Tensor:
    return x


def is_untouched(model: VisionTransformer) -> bool:
    n_hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return n_hooks == 0 and "forward" not in vars(model)


@pytest.mark.parametrize("name", KINDS)
def test_every_site_equals_plain_attention_by_hand(name: str) -> None:
    model, images = tiny(name).double(), random_images().double()
    expected = by_hand(model, images)
    with capture(model, "*") as activations:
        model(images)
    assert activations.keys() == expected.keys()
    for site, value in expected.items():
        torch.testing.assert_close(activations[site], value, rtol=1e-10, atol=1e-10, msg=site)


@pytest.mark.parametrize("name", KINDS)
def test_resid_post_equals_the_intermediates_of_timm(name: str) -> None:
    model, images = tiny(name), random_images()
    patches = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    with capture(model, "blocks.*.resid_post") as activations:
        model(images)
    for i, expected in enumerate(patches):
        assert isinstance(expected, Tensor)
        assert torch.equal(activations[f"blocks.{i}.resid_post"][:, model.num_prefix_tokens :], expected)


@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", KINDS)
def test_an_identity_patch_at_every_site_changes_no_bit(name: str, no_grad: Callable[[], Any]) -> None:
    model, images = tiny(name), random_images()
    with no_grad():
        expected = model(images)
        with patch(model, {"*": unchanged}):
            assert torch.equal(model(images), expected)


def test_an_identity_patch_with_gradients_changes_no_bit() -> None:
    model, images = tiny(), random_images()
    with torch.enable_grad(), patch(model, {"*": unchanged}):
        logits = model(images)
    assert torch.equal(logits, model(images))


@pytest.mark.parametrize("site", site_names(tiny()))
def test_a_patch_with_a_copy_reproduces_the_model(site: str) -> None:
    model, images = tiny().double(), random_images().double()
    with patch(model, {site: torch.clone}):
        patched = model(images)
    torch.testing.assert_close(patched, model(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("site", site_names(tiny()))
def test_every_site_carries_to_the_logits(site: str) -> None:
    model, images = tiny(), random_images()
    with patch(model, {site: lambda x: x.roll(1, dims=-1)}):
        patched = model(images)
    assert not torch.allclose(patched, model(images), rtol=1e-3)


def test_a_zero_patch_of_mlp_out_removes_the_branch() -> None:
    model, images = tiny(), random_images()
    with patch(model, {"blocks.0.mlp_out": torch.zeros_like}):
        patched = model(images)
    first: Any = model.blocks[0]
    x = embed(model, images)
    x = x + first.ls1(first.attn(first.norm1(x)))
    expected = model.forward_head(model.norm(model.blocks[1](x)))
    assert torch.equal(patched, expected)


@pytest.mark.parametrize("name", ["resid_pre", "resid_mid", "resid_post"])
def test_the_residual_stream_of_another_image_takes_over(name: str) -> None:
    model, images = tiny(depth=3), random_images()
    donor = random_images(seed=1)
    with capture(model, f"blocks.1.{name}") as activations:
        model(donor)
    with patch(model, {f"blocks.1.{name}": lambda _: activations[f"blocks.1.{name}"]}):
        patched = model(images)
    assert torch.equal(patched, model(donor))


@pytest.mark.parametrize("name", "qkv")
def test_a_third_of_qkv_is_replaced_and_the_others_are_not(name: str) -> None:
    model, images = tiny(), random_images()
    with capture(model, "blocks.0.[qkv]") as before:
        model(images)
    with patch(model, {f"blocks.0.{name}": lambda x: x + 1}), capture(model, "blocks.0.[qkv]") as after:
        model(images)
    for other in "qkv":
        assert torch.equal(after[f"blocks.0.{other}"], before[f"blocks.0.{other}"] + (other == name))


def test_attention_that_looks_at_one_token_hands_on_its_value() -> None:
    model, images = tiny(), random_images()

    def look_at_token_3(probs: Tensor) -> Tensor:
        return torch.zeros_like(probs).index_fill(3, torch.tensor([3]), 1.0)

    with (
        patch(model, {"blocks.0.attn_probs": look_at_token_3}),
        capture(model, ["blocks.0.v", "blocks.0.head_out"]) as a,
    ):
        model(images)
    assert torch.equal(a["blocks.0.head_out"], a["blocks.0.v"][:, 3:4].expand_as(a["blocks.0.head_out"]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attention_probabilities_may_be_changed_in_place(mode: Callable[[], Any]) -> None:
    model, images = tiny(), random_images()
    with mode(), patch(model, {"blocks.0.attn_probs": Tensor.zero_}), capture(model, "blocks.0.head_out") as a:
        model(images)
    assert a["blocks.0.head_out"].count_nonzero() == 0


def test_layer_scale_in_place_changes_nothing() -> None:
    model, images = tiny(), random_images()
    with capture(model, "*") as expected:
        model(images)
    blocks: Any = model.blocks
    for block in blocks:
        block.ls1.inplace = block.ls2.inplace = True
    with capture(model, "*") as activations:
        model(images)
    assert all(torch.equal(activations[site], expected[site]) for site in expected)


def test_a_capture_copies_nothing() -> None:
    model, images = tiny(), random_images()
    with capture(model, ["blocks.0.[qkv]", "blocks.0.resid_post", "blocks.1.resid_pre"]) as a:
        model(images)
    assert a["blocks.0.q"].data_ptr() == a["blocks.0.k"].data_ptr() - 32 * 4  # the k of a token follows its q
    assert a["blocks.0.resid_post"].data_ptr() == a["blocks.1.resid_pre"].data_ptr()


def test_the_last_forward_is_held() -> None:
    model, images = tiny(), random_images(3)
    with capture(model, "blocks.1.mlp_out") as activations:
        model(images)
        model(images[:1])
    assert len(activations["blocks.1.mlp_out"]) == 1


def test_a_forward_ends_after_the_last_site() -> None:
    model, images = tiny(), random_images()
    calls: list[str] = []
    model.blocks[1].register_forward_pre_hook(lambda *_: calls.append("block 1"))
    with capture(model, ["blocks.0.q", "blocks.0.resid_post"]):
        assert model(images) is None
    assert calls == []


def test_without_stop_the_logits_come_back() -> None:
    model, images = tiny(), random_images()
    with capture(model, "blocks.0.q", stop=False):
        logits = model(images)
    assert torch.equal(logits, model(images))


@pytest.mark.parametrize(("outer", "inner"), [("blocks.0.q", "blocks.1.q"), ("blocks.1.q", "blocks.0.q")])
def test_no_capture_stops_before_another_has_its_sites(outer: str, inner: str) -> None:
    model, images = tiny(), random_images()
    with capture(model, outer) as first, capture(model, inner) as second:
        assert model(images) is None
    assert (set(first), set(second)) == ({outer}, {inner})


@pytest.mark.parametrize("stops", [(True, False), (False, True)])
def test_one_capture_without_stop_lets_the_forward_end(stops: tuple[bool, bool]) -> None:
    model, images = tiny(), random_images()
    with capture(model, "blocks.0.q", stop=stops[0]), capture(model, "blocks.1.q", stop=stops[1]):
        assert model(images) is not None


def test_the_outer_patch_acts_before_the_inner() -> None:
    model, images = tiny(), random_images()
    with patch(model, {"logits": lambda x: x + 1}), patch(model, {"logits": lambda x: 2 * x}):
        patched = model(images)
    assert torch.equal(patched, 2 * (model(images) + 1))


def test_overlapping_patterns_act_in_the_given_order() -> None:
    model, images = tiny(), random_images()
    with patch(model, {"logits": lambda x: x + 1, "log*": lambda x: 2 * x}):
        patched = model(images)
    assert torch.equal(patched, 2 * (model(images) + 1))


@pytest.mark.parametrize("site", site_names(tiny()))
def test_a_capture_sees_the_patched_value_inside_and_outside(site: str) -> None:
    model, images = tiny(), random_images()
    with capture(model, site) as outside, patch(model, {site: torch.zeros_like}), capture(model, site) as inside:
        model(images)
    assert outside[site].count_nonzero() == inside[site].count_nonzero() == 0


def test_a_patched_resid_mid_reaches_the_resid_post_of_an_outer_capture() -> None:
    model, images = tiny(), random_images()
    sites = ["blocks.0.mlp_out", "blocks.0.resid_post"]
    with capture(model, sites) as activations, patch(model, {"blocks.0.resid_mid": torch.zeros_like}):
        model(images)
    assert torch.equal(activations["blocks.0.resid_post"], activations["blocks.0.mlp_out"])


def interrupt(_: Tensor) -> Tensor:
    raise KeyboardInterrupt


@pytest.mark.parametrize("image_size", [24, 5])
def test_an_exception_leaves_nothing_behind(image_size: int) -> None:
    """The one is raised by an edit, the other by timm, which asserts the image size."""
    model, images = tiny(), random_images()[:, :, :image_size]
    with (
        pytest.raises((KeyboardInterrupt, AssertionError)),
        capture(model, "*"),
        patch(model, {"*": unchanged}),
        patch(model, {"blocks.1.q": interrupt}),
    ):
        model(images)
    assert is_untouched(model)


def test_a_model_works_on_after_an_exception_inside() -> None:
    model, images = tiny(), random_images()
    with capture(model, "blocks.1.q") as activations:
        with patch(model, {"blocks.0.q": interrupt}), pytest.raises(KeyboardInterrupt):
            model(images)
        model(images)
    with capture(model, "blocks.1.q") as expected:
        model(images)
    assert torch.equal(activations["blocks.1.q"], expected["blocks.1.q"])


def test_an_unknown_site_leaves_nothing_behind() -> None:
    model = tiny()
    with (
        pytest.raises(ValueError, match=r"no site 'blocks\.9\.q'"),
        patch(model, {"logits": unchanged, "blocks.9.q": unchanged}),
    ):
        pass
    assert is_untouched(model)


def test_closing_in_another_order_leaves_nothing_behind() -> None:
    model, images = tiny(), random_images()
    first, second = capture(model, "blocks.0.q"), capture(model, "blocks.1.q")
    first.__enter__()
    activations = second.__enter__()
    first.__exit__(None, None, None)
    model(images)
    second.__exit__(None, None, None)
    assert set(activations) == {"blocks.1.q"}
    assert is_untouched(model)


def test_the_forward_of_someone_else_comes_back() -> None:
    model, images = tiny(), random_images()
    theirs = Mock(wraps=model.forward)
    vars(model)["forward"] = theirs
    with patch(model, {"blocks.0.q": unchanged}):
        model(images)
    assert theirs.call_count == 1
    assert model.forward is theirs


def test_forward_features_is_captured_without_a_stop() -> None:
    model, images = tiny(), random_images()
    with capture(model, ["blocks.0.q", "pooled"]) as activations:
        features = model.forward_features(images)
    assert torch.equal(features, model.forward_features(images))
    assert set(activations) == {"blocks.0.q"}


def test_a_site_that_no_forward_has_passed_is_named() -> None:
    model = tiny()
    with capture(model, "pooled") as activations, pytest.raises(KeyError, match="'pooled' was not captured"):
        activations["pooled"]


def test_a_site_that_a_forward_misses_is_an_error() -> None:
    model, images = tiny(), random_images()
    model.blocks[1].forward = unchanged
    with (
        capture(model, ["blocks.0.q", "blocks.1.q"]),
        pytest.raises(RuntimeError, match=r"did not pass \['blocks.1.q'\]"),
    ):
        model(images)


def test_a_patch_of_another_shape_is_refused() -> None:
    model, images = tiny(), random_images()
    edits = {"blocks.1.mlp_neuron": lambda x: x.mean(dim=1)}
    with (
        patch(model, edits),
        pytest.raises(ValueError, match=r"blocks\.1\.mlp_neuron returned shape \(2, 128\) for \(2, 10, 128\)"),
    ):
        model(images)


def no_result(_: Tensor) -> Any:
    return None


def test_a_patch_that_returns_nothing_is_refused() -> None:
    model, images = tiny(), random_images()
    with (
        patch(model, {"logits": no_result}),
        pytest.raises(ValueError, match="logits returned NoneType instead of a tensor"),
    ):
        model(images)


def test_attention_dropout_forbids_a_patch_of_the_probabilities() -> None:
    model, images = tiny().train(), random_images()
    model.get_submodule("blocks.0.attn.attn_drop").p = 0.1  # type: ignore[assignment]
    with patch(model, {"blocks.0.attn_probs": unchanged}), pytest.raises(ValueError, match="attention dropout"):
        model(images)


def test_an_attention_mask_forbids_the_probabilities() -> None:
    model, images = tiny(), random_images()
    with capture(model, "blocks.0.attn_probs"), pytest.raises(ValueError, match="without an attention mask"):
        model(images, is_causal=True)


def test_gradient_checkpointing_is_refused() -> None:
    model = tiny()
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match="gradient checkpointing"), capture(model, "logits"):
        pass


@pytest.mark.parametrize("site", [site for site in site_names(tiny()) if not site.endswith("attn_probs")])
def test_captured_tensors_have_the_gradient_of_what_flows_on(site: str) -> None:
    """Compare with a finite difference along a random direction, in float64."""
    model, images = tiny().double(), random_images().double()

    def score(logits: Tensor) -> Tensor:
        return logits.sin().sum()

    with torch.enable_grad(), capture(model, site, stop=False) as activations:
        value = score(model(images))
        (gradient,) = torch.autograd.grad(value, activations[site])
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = []
    for step in (1e-6, -1e-6):
        with patch(model, {site: partial(torch.add, step * direction)}):
            scores.append(score(model(images)))
    difference = (scores[0] - scores[1]) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_probabilities_is_that_of_the_head_output_times_v() -> None:
    """DA = dO V^T, against autograd through a patched A."""
    model, images = tiny().double(), random_images().double()
    sites = ["blocks.0.attn_probs", "blocks.0.v", "blocks.0.head_out"]
    with torch.enable_grad(), patch(model, {sites[0]: torch.clone}), capture(model, sites, stop=False) as a:
        loss = model(images).sin().sum()
        expected, d_out = torch.autograd.grad(loss, [a[sites[0]], a[sites[2]]])
    v = a[sites[1]].unflatten(-1, (2, -1)).transpose(1, 2)  # (B, T, H*h) -> (B, H, T, h)
    d_out = d_out.unflatten(-1, (2, -1)).transpose(1, 2)
    torch.testing.assert_close(d_out @ v.mT, expected, rtol=1e-10, atol=1e-12)


def test_a_patch_carries_gradients_of_its_own() -> None:
    model, images = tiny(), random_images()
    mask = torch.ones(32, requires_grad=True)
    with (
        torch.enable_grad(),
        patch(model, {"blocks.*.[qkv]": lambda x: x * mask, "blocks.*.resid_mid": lambda x: x * mask}),
    ):
        model(images).sum().backward()
    assert mask.grad is not None
    assert bool((mask.grad != 0).all())


def test_autocast_changes_no_bit_under_identity_patches() -> None:
    model, images = tiny(), random_images()
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images)
        with patch(model, {"*": unchanged}):
            assert torch.equal(model(images), expected)


def test_a_float32_edit_under_autocast_takes_the_dtype_of_the_site() -> None:
    model, images = tiny(), random_images()
    with torch.autocast("cpu", torch.bfloat16), patch(model, {"*": Tensor.float}), capture(model, "*") as patched:
        model(images)
    with torch.autocast("cpu", torch.bfloat16), capture(model, "*") as plain:
        model(images)
    assert {site: x.dtype for site, x in patched.items()} == {site: x.dtype for site, x in plain.items()}


def compiled_whole(model: VisionTransformer, backend: str) -> Any:
    return torch.compile(model, backend=backend)


def compiled_in_place(model: VisionTransformer, backend: str) -> Any:
    model.compile(backend=backend)
    return model


def compiled_by_block(model: VisionTransformer, backend: str) -> Any:
    for block in model.blocks:
        block.compile(backend=backend)
    return model


COMPILE = [compiled_whole, compiled_in_place, compiled_by_block]


def check_taps_on_compiled(compile_: Callable[[VisionTransformer, str], Any], backend: str) -> None:
    model, images = tiny(), random_images()
    with capture(model, "*") as expected, patch(model, {"blocks.1.resid_mid": torch.zeros_like}):
        model(images)
    compiled = compile_(model, backend)
    before = compiled(images)
    with capture(compiled, "*") as activations, patch(compiled, {"blocks.1.resid_mid": torch.zeros_like}):
        compiled(images)
    assert all(torch.equal(activations[site], expected[site]) for site in expected)
    assert torch.equal(compiled(images), before)


@pytest.mark.parametrize("compile_", COMPILE)
def test_taps_reach_into_compiled_models(compile_: Callable[[VisionTransformer, str], Any]) -> None:
    check_taps_on_compiled(compile_, "eager")


@pytest.mark.slow
@pytest.mark.threads
# the compiler pickles a cache key, and pickle asks every loaded module for a name, deprecated ones of jsonargparse too
@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize("compile_", COMPILE)
def test_taps_reach_into_models_compiled_by_inductor(compile_: Callable[[VisionTransformer, str], Any]) -> None:
    check_taps_on_compiled(compile_, "inductor")


def test_a_tap_costs_no_recompilation() -> None:
    compilations: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        compilations.append(1)
        return graph.forward

    model, images = tiny(), random_images()
    compiled: Any = torch.compile(model, backend=backend)
    compiled(images)
    n_before = len(compilations)
    with capture(compiled, "blocks.0.q"):
        compiled(images)
    compiled(images)
    assert len(compilations) == n_before


def captures_under_ddp(_: int) -> bool:
    model, images = tiny(), random_images()
    with capture(model, "*") as expected:
        model(images)
    wrapped = nn.parallel.DistributedDataParallel(model)
    with capture(wrapped, "*") as activations:
        wrapped(images)
    return all(torch.equal(activations[site], expected[site]) for site in expected)


def test_taps_reach_into_distributed_models() -> None:
    assert run_distributed(captures_under_ddp) == [True, True]
