"""The rules of attribution word by word: one image, float64, unfused attention, whole matrices, nothing shared."""

from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.backbones import Backbone
from impact_lightning.backbones.abs_topk import ActivationTopK
from impact_lightning.backbones.backbone import ModelArgs

SMALL: ModelArgs = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 3}
MODELS: dict[str, tuple[str, ModelArgs]] = {
    "plain": ("vit_tiny_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {"init_values": 0.1}),
    "wide": ("vit_tiny_patch16_224", {"embed_dim": 96, "depth": 2}),  # rows of more than 64 weights
    "wide deit3": ("deit3_small_patch16_224", {"init_values": 0.1, "embed_dim": 72, "depth": 2}),
    "average": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "average with class token": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "average, prefix included": ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
    "registers": ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}),
    "qk_norm": ("vit_tiny_patch16_224", {"qk_norm": True, "global_pool": "avg"}),
    "no qkv bias": ("vit_tiny_patch16_224", {"qkv_bias": False}),
    "scale norms": ("vit_tiny_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True, "pre_norm": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
}


def build(
    kind: str, *, n_classes: int = 5, seed: int = 0, topk: ActivationTopK | None = None, **args: Any
) -> VisionTransformer:
    """Build a small float64 model, each parameter random: LayerScale has both signs."""
    name, of_kind = MODELS[kind]
    backbone = Backbone(name, model_args={**SMALL, **of_kind, **args}, num_classes=n_classes, activation_topk=topk)
    model = backbone.build().eval().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=0.8 if "gamma" in path else 0.25)
    return model


def random_images(n: int = 3, *, size: tuple[int, int] = (32, 32), seed: int = 0) -> Tensor:
    """Return normal noise `(n, 3, h, w)` in float64."""
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class BlockTape(NamedTuple):
    """What a block computed of one image, as part of the graph; tokens and channels only."""

    x0: Tensor
    n1: Tensor
    q: Tensor  # (H, T, h)
    k: Tensor
    v: Tensor
    probs: Tensor  # (H, T, T)
    mixed: Tensor  # (H, T, h)
    proj_in: Tensor
    attn_out: Tensor
    x1: Tensor
    n2: Tensor
    neuron: Tensor
    mlp_out: Tensor
    x2: Tensor


def forward(model: VisionTransformer, image: Tensor) -> tuple[list[BlockTape], Tensor, Tensor]:
    """Return the tapes of the blocks, the final tokens `(T, D)` and the logits `(C,)` of one image `(3, h, w)`."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]
    tapes = []
    for block in model.blocks:
        tapes.append(tape := block_forward(block, x))
        x = tape.x2
    tokens = model.norm(x)
    return tapes, tokens, model.forward_head(tokens[None])[0]


def block_forward(block: Any, x: Tensor) -> BlockTape:
    attn, n_tokens = block.attn, len(x)
    n1 = block.norm1(x)
    q, k, v = attn.qkv(n1).reshape(n_tokens, 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    q, k = attn.q_norm(q), attn.k_norm(k)
    probs = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
    mixed = probs @ v
    proj_in = attn.norm(mixed.permute(1, 0, 2).reshape(n_tokens, -1))
    attn_out = block.ls1(attn.proj(proj_in))
    x1 = x + attn_out
    n2 = block.norm2(x1)
    neuron = block.mlp.norm(block.mlp.act(block.mlp.fc1(n2)))
    mlp_out = block.ls2(block.mlp.fc2(neuron))
    return BlockTape(x, n1, q, k, v, probs, mixed, proj_in, attn_out, x1, n2, neuron, mlp_out, x1 + mlp_out)


def sdiv(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b == 0, torch.zeros_like(a), a / (b + 1e-9))


def z_plus(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Share each output's relevance among what adds to it that is positive, term by term: `(T, out, in)`."""
    terms = (x[:, None, :] * weight).clamp(min=0)
    return (terms * sdiv(relevance, terms.sum(2))[:, :, None]).sum(1)


def residual(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    s = sdiv(relevance, a + b)
    r_a, r_b = a * s, b * s
    sum_a, sum_b, total = r_a.sum(), r_b.sum(), relevance.sum()
    part_a = sdiv(sum_a.abs(), sum_a.abs() + sum_b.abs())
    part_b = sdiv(sum_b.abs(), sum_a.abs() + sum_b.abs())
    return r_a * sdiv(part_a * total, sum_a), r_b * sdiv(part_b * total, sum_b)


def folded(linear: Any, scale: Any) -> Tensor:
    weight: Tensor = linear.weight
    return weight * scale.gamma[:, None] if hasattr(scale, "gamma") else weight


def seed(model: Any, tokens: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Return the relevance of the final tokens `(T, D)` and the row `(T,)` that is rolled out."""
    relevance, row = torch.zeros_like(tokens), torch.zeros_like(tokens[:, 0])
    one_hot = torch.zeros(1, model.num_classes, dtype=tokens.dtype)
    one_hot[0, target] = 1
    if hasattr(model, "head_dist"):
        relevance[:1] = z_plus(tokens[:1], model.head.weight, one_hot / 2)
        relevance[1:2] = z_plus(tokens[1:2], model.head_dist.weight, one_hot / 2)
        row[:2] = 0.5
    elif model.global_pool == "token":
        relevance[:1] = z_plus(model.fc_norm(tokens[:1]), model.head.weight, one_hot)
        row[0] = 1
    else:
        read = tokens if model.pool_include_prefix else tokens[model.num_prefix_tokens :]
        pooled = z_plus(model.fc_norm(read.mean(0, keepdim=True)), model.head.weight, one_hot)
        shares = read.clamp(min=0) * sdiv(pooled, read.clamp(min=0).sum(0, keepdim=True))
        relevance[len(tokens) - len(read) :] = shares
        row[len(tokens) - len(read) :] = 1 / len(read)
    return relevance, row


def descend_reported(block: Any, tape: BlockTape, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same as `descend` by the rules that are reported for DeiT-III."""
    past, r = residual(tape.x1, tape.mlp_out, relevance)
    r = z_plus(tape.neuron, block.mlp.fc2.weight, unscaled(block.ls2, r))
    r = past + z_plus(tape.n2, block.mlp.fc1.weight, r)
    past, r = residual(tape.x0, tape.attn_out, r)
    r = z_plus(tape.proj_in, block.attn.proj.weight, unscaled(block.ls1, r))
    r_mixed = r.reshape(len(r), len(tape.q), -1).permute(1, 0, 2)  # (H, T, h)
    s = sdiv(r_mixed, tape.mixed)
    r_probs = tape.probs * (s @ tape.v.transpose(1, 2)) / 2
    r_v = (tape.v * (tape.probs.transpose(1, 2) @ s)).permute(1, 0, 2).reshape(len(r), -1)  # (H, T, h) -> (T, H*h)
    width = tape.proj_in.shape[1]
    return r_probs, past + z_plus(tape.n1, block.attn.qkv.weight[2 * width :], r_v)


def unscaled(scale: Any, relevance: Tensor) -> Tensor:
    return relevance / (scale.gamma + 1e-9) if hasattr(scale, "gamma") else relevance


def descend(block: Any, tape: BlockTape, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the relevance of the attention probabilities `(H, T, T)` and of what the block read `(T, D)`."""
    past, r = residual(tape.x1, tape.mlp_out, relevance)
    r = z_plus(tape.neuron, folded(block.mlp.fc2, block.ls2), r)
    r = past + z_plus(tape.n2, block.mlp.fc1.weight, r)
    past, r = residual(tape.x0, tape.attn_out, r)
    r = z_plus(tape.proj_in, folded(block.attn.proj, block.ls1), r)
    r_mixed = r.reshape(len(r), len(tape.q), -1).permute(1, 0, 2)  # (H, T, h)
    s = sdiv(r_mixed, tape.mixed)
    r_probs = tape.probs * (s @ tape.v.transpose(1, 2)) / 2
    r_v = tape.v * (tape.probs.transpose(1, 2) @ s) / 2
    s = sdiv(r_probs, tape.q @ tape.k.transpose(1, 2))
    r_q = tape.q * (s @ tape.k) / 2
    r_k = tape.k * (s.transpose(1, 2) @ tape.q) / 2
    r = torch.stack([r_q, r_k, r_v]).permute(2, 0, 1, 3).reshape(len(r), -1)  # (3, H, T, h) -> (T, 3*H*h)
    return r_probs, past + z_plus(tape.n1, block.attn.qkv.weight, r)


def relevances(model: VisionTransformer, image: Tensor, target: int) -> list[Tensor]:
    """Return the relevance of what each block read, from the first block to the final tokens."""
    tapes, tokens, _ = forward(model, image)
    found = [seed(model, tokens, target)[0]]
    for block, tape in zip(reversed(model.blocks), reversed(tapes), strict=True):
        found.append(descend(block, tape, found[-1])[1])
    return found[::-1]


def transformer_attribution(
    model: VisionTransformer,
    image: Tensor,
    target: int,
    *,
    relevance: str = "lrp",
    rules: str = "chefer",
    start_block: int = 0,
    row_normalise: bool = False,
) -> Tensor:
    """Return relevance `(P,)` of the patches of one image, by N x N products."""
    with torch.enable_grad():
        tapes, tokens, logits = forward(model, image.clone().requires_grad_())
        gradients = torch.autograd.grad(logits[target], [tape.probs for tape in tapes])
    with torch.no_grad():
        r, row = seed(model, tokens, target)
        product = torch.eye(len(tokens), dtype=tokens.dtype)
        for i in reversed(range(start_block, len(tapes))):
            down = descend if rules == "chefer" else descend_reported
            r_probs, r = down(model.blocks[i], tapes[i], r)
            weighted = gradients[i] * (r_probs if relevance == "lrp" else tapes[i].probs)
            matrix = torch.eye(len(tokens), dtype=tokens.dtype) + weighted.clamp(min=0).mean(0)
            if row_normalise:
                matrix = matrix / matrix.sum(1, keepdim=True)
            product = product @ matrix
        return (row @ product)[model.num_prefix_tokens :]
