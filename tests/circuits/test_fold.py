"""A folded model computes what a gated one does, and what cannot be folded is refused."""

import copy
from typing import Any

import pytest
import timm
import torch
from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn

from impact_lightning.backbones import check_supported
from impact_lightning.backbones.abs_topk import ActivationTopK
from impact_lightning.circuits.fold import Folder, fold
from impact_lightning.circuits.gated import gating
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.types import UserError

ARGS: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "layer scale": ("deit3_small_patch16_224", {}),
    "no qkv bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "no bias at all": ("vit_tiny_patch16_224", {"qkv_bias": False, "proj_bias": False, "init_values": 0.1}),
    "registers, qk norm": ("vit_base_patch16_224", {"reg_tokens": 2, "qk_norm": True}),
    "average pooling": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "packed GLU": ("vit_base_patch14_reg4_dinov2", {"mlp_layer": GluMlp, "init_values": 0.5}),
    "packed SwiGLU": ("vit_giant_patch14_reg4_dinov2", {"mlp_ratio": 4}),
    "SwiGLU": ("vit_tiny_patch16_224", {"mlp_layer": SwiGLU}),
    "attention norm": ("vit_tiny_patch16_224", {"scale_attn_norm": True}),
    "MLP norm": ("vit_tiny_patch16_224", {"scale_mlp_norm": True}),
}
DENSITIES = (0.0, 0.05, 0.3, 0.8, 1.0)


def vit(kind: str = "plain") -> Any:
    """Return a model in float64, LayerScale of both signs."""
    name, more = KINDS[kind]
    torch.manual_seed(0)
    model = timm.create_model(name, **{**ARGS, **more}).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def pictures(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def constants(nodes: Nodes, seed: int = 2) -> Tensor:
    return torch.randn(nodes.n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(nodes: Nodes, density: float, seed: int = 3) -> Tensor:
    return (torch.rand(nodes.n, generator=torch.Generator().manual_seed(seed)) < density).double()


def hooked(model: Any, nodes: Nodes, images: Tensor, mask: Tensor, mu: Tensor) -> Tensor:
    """Return the logits of a circuit `(n,)` by gates."""
    with gating(model, nodes) as gated:
        masks = mask.double().expand(len(images), -1)
        return gated(images, masks, lambda sites: torch.cat([mu[site.of] for site in sites])[None, None])


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_is_hooked(kind: str) -> None:
    model, images = vit(kind), pictures()
    nodes = Nodes(model)
    before, mu = copy.deepcopy(model.state_dict()), constants(nodes)
    for density in DENSITIES:
        mask = drawn(nodes, density)
        same(fold(model, nodes, mask, mu)(images), hooked(model, nodes, images, mask, mu))
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() == before.keys()


@pytest.mark.parametrize("kind", ["layer scale", "registers, qk norm", "packed GLU"])
def test_masks_in_between_fold_too(kind: str) -> None:
    model, images = vit(kind), pictures()
    nodes = Nodes(model)
    mask = torch.rand(nodes.n, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    mu = constants(nodes)
    same(fold(model, nodes, mask, mu)(images), hooked(model, nodes, images, mask, mu))


def test_layer_scale_of_the_tests_has_both_signs() -> None:
    gamma = vit("layer scale").blocks[0].ls1.gamma
    assert (gamma < 0).any()
    assert (gamma > 0).any()


def test_a_folded_model_is_a_plain_timm_model() -> None:
    model, images = vit("layer scale"), pictures()
    nodes = Nodes(model)
    folded: Any = fold(model, nodes, drawn(nodes, 0.5), constants(nodes))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())
    plain = timm.create_model("vit_tiny_patch16_224", **ARGS, no_embed_class=True).double().eval()
    plain.load_state_dict(folded.state_dict())
    assert torch.equal(plain(images), folded(images))
    assert check_supported(folded) is folded


def test_a_mask_of_bools_is_a_mask() -> None:
    model, images = vit(), pictures()
    nodes = Nodes(model)
    mask, mu = drawn(nodes, 0.5), constants(nodes)
    assert torch.equal(fold(model, nodes, mask.bool(), mu)(images), fold(model, nodes, mask, mu)(images))


def test_nothing_is_left_of_the_circuit_before() -> None:
    model, images = vit("layer scale"), pictures()
    nodes = Nodes(model)
    folder = Folder(model, nodes)
    first = folder.load(drawn(nodes, 0.2), constants(nodes))
    weights = {name: value.data_ptr() for name, value in first.state_dict().items()}
    for density in (1.0, 0.0, 0.6):
        mask, mu = drawn(nodes, density, seed=5), constants(nodes, seed=6)
        again = folder.load(mask, mu)
        assert again is first
        assert {name: value.data_ptr() for name, value in again.state_dict().items()} == weights
        assert torch.equal(again(images), fold(model, nodes, mask, mu)(images))


def test_weights_of_half_precision_are_rounded_once() -> None:
    model = vit().bfloat16()
    nodes = Nodes(model)
    mask, mu = drawn(nodes, 0.5), constants(nodes)
    folded: Any = fold(model, nodes, mask, mu)
    exact: Any = fold(copy.deepcopy(model).double(), nodes, mask, mu)
    for name, value in exact.state_dict().items():
        found = folded.state_dict()[name]
        if name.endswith("weight"):
            assert torch.equal(found, value.bfloat16()), name
        torch.testing.assert_close(found, value.bfloat16(), msg=name)


# --------------------------------------------------------------------------------------------------------- refusals


def refused(model: Any, match: str, nodes: Nodes | None = None, shape: tuple[int, ...] | None = None) -> None:
    nodes = nodes or Nodes(model)
    with pytest.raises(UserError, match=match):
        fold(model, nodes, torch.ones(nodes.n), torch.zeros(shape or (nodes.n,)))


def test_constants_that_depend_on_the_token_are_refused() -> None:
    model = vit()
    n = Nodes(model).n
    refused(model, r"mu of shape \(5, \d+\) cannot be folded", shape=(5, n))
    refused(model, r"mu of shape \(1, 5, \d+\) cannot be folded", shape=(1, 5, n))
    with pytest.raises(UserError, match=r"mask of shape \(3, \d+\) cannot be folded"):
        fold(model, Nodes(model), torch.ones(3, n), torch.zeros(n))


def test_training_mode_is_refused_with_its_module() -> None:
    refused(vit().train(), "the model is in training mode")
    model = vit()
    model.blocks[1].mlp.drop1.train()
    refused(model, r"blocks\.1\.mlp\.drop1 is in training mode")


def test_hooks_are_refused_with_their_module() -> None:
    model = vit()
    model.blocks[1].attn.qkv.register_forward_hook(lambda *_: None)
    refused(model, r"blocks\.1\.attn\.qkv has hooks")
    model = vit()
    with gating(model, Nodes(model)):
        refused(model, r"blocks\.0\.norm1 has hooks")


def test_activation_sparsity_is_refused() -> None:
    sparse = vit()
    ActivationTopK().attach(sparse)
    refused(sparse, "activation_topk cannot be folded")


def test_layers_that_are_not_linear_are_refused_with_their_name() -> None:
    class Merged(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    model = vit()
    model.blocks[1].mlp.fc1 = Merged(16, 64).double().eval()
    refused(model, r"blocks\.1\.mlp\.fc1 is a Merged")
    model = vit()
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].attn.proj).eval()
    refused(model, r"blocks\.0\.attn\.proj is a ParametrizedLinear")


def test_another_scale_is_refused_with_its_name() -> None:
    model = vit()
    model.blocks[0].ls2 = nn.Tanh().eval()
    refused(model, r"blocks\.0\.ls2 is a Tanh")


def test_nodes_of_another_model_are_refused() -> None:
    wide = timm.create_model("vit_tiny_patch16_224", **{**ARGS, "mlp_ratio": 2}).eval()
    refused(vit(), r"blocks\.0\.mlp\.fc2 has 64 channels and 32 nodes", nodes=Nodes(wide))
    deep = timm.create_model("vit_tiny_patch16_224", **{**ARGS, "depth": 3}).eval()
    refused(vit(), "the model has 2 blocks, and the nodes are of 3", nodes=Nodes(deep))
