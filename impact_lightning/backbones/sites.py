"""Sites: the named places of a vision transformer where activations are read and changed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal

from timm.layers.attention import Attention
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from impact_lightning.types import UserError

BLOCK_SITES = (  # in the order in which a block computes them
    "resid_pre",  # (B, T, D) what the block reads
    "attn_in",  # (B, T, D) after the first norm
    "q",  # (B, T, H*h) before q_norm
    "k",  # (B, T, H*h) before k_norm
    "v",  # (B, T, H*h)
    "attn_probs",  # (B, H, T, T) rows sum to one
    "head_out",  # (B, T, H*h) what the heads hand to the output projection
    "attn_out",  # (B, T, D) what attention adds to the residual stream, after LayerScale
    "resid_mid",  # (B, T, D) the residual stream between the branches
    "mlp_in",  # (B, T, D) after the second norm
    "mlp_neuron",  # (B, T, hidden) what the second linear layer reads
    "mlp_out",  # (B, T, D) what the MLP adds to the residual stream, after LayerScale
    "resid_post",  # (B, T, D) what the block writes
)
MODEL_SITES = (
    "final_norm",  # (B, T, D) tokens after the last norm; before pooling
    "pooled",  # (B, D) what the head reads
    "logits",  # (B, C)
)


@dataclass(frozen=True)
class Site:
    """A named place: a site of one block, or of the whole model if `block` is None.

    Example:
        >>> Site.parse("blocks.11.mlp_neuron")
        Site(block=11, name='mlp_neuron')
        >>> str(Site(None, "logits"))
        'logits'
    """

    block: int | None
    name: str

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read `blocks.{i}.{name}` or the name of a site of the whole model."""
        if text in MODEL_SITES:
            return cls(None, text)
        match = re.fullmatch(r"blocks\.(0|[1-9]\d*)\.(\w+)", text)
        if match is None or match[2] not in BLOCK_SITES:
            names = [*(f"blocks.<i>.{name}" for name in BLOCK_SITES), *MODEL_SITES]
            raise UserError(f"{text!r} is no site; known are {', '.join(names)}")
        return cls(int(match[1]), match[2])

    def __str__(self) -> str:
        """Write the site as `parse` reads it."""
        return self.name if self.block is None else f"blocks.{self.block}.{self.name}"


def check_supported(model: nn.Module) -> VisionTransformer:
    """Return the vision transformer inside `model`, or refuse an architecture whose sites would be read wrongly.

    What counts is that model, blocks, attention and MLP run the very forward that the sites were defined for; a
    subclass that computes something else is refused.
    """
    transformer = unwrap(model)
    _check_forward("the model", transformer, VisionTransformer, ("patch_embed", "blocks", "norm", "fc_norm", "head"))
    assert isinstance(transformer, VisionTransformer)
    for i, block in enumerate(transformer.blocks):
        _check_block(f"blocks.{i}", block, transformer.embed_dim)
    return transformer


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of `torch.compile` and DistributedDataParallel."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def site_names(model: nn.Module) -> list[str]:
    """Return the sites of `model` in the order of execution."""
    transformer = check_supported(model)
    blocks = [str(Site(i, name)) for i in range(len(transformer.blocks)) for name in BLOCK_SITES]
    # a distilled model has two heads that read two tokens: no single place is "the input of the head"
    two_heads = isinstance(transformer, VisionTransformerDistilled)
    return blocks + [name for name in MODEL_SITES if not (two_heads and name == "pooled")]


def expand_sites(model: nn.Module, patterns: str | Iterable[str]) -> list[str]:
    """Return the sites that match, in the order of execution and each once.

    Args:
        model: The model that has the sites.
        patterns: Names or globs such as `blocks.*.mlp_neuron`; each has to match at least one site.
    """
    names = site_names(model)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    matched = {site for pattern in patterns for site in match_sites(pattern, names)}
    return [name for name in names if name in matched]


def match_sites(pattern: str, names: list[str]) -> list[str]:
    """Return the names that a name or glob matches, at least one."""
    matched = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
    if not matched:
        closest = ", ".join(get_close_matches(pattern, names, n=3, cutoff=0.0))
        n_blocks = sum(name.endswith(".resid_pre") for name in names)
        raise UserError(f"no site {pattern!r} in this model of {n_blocks} blocks; the closest names are {closest}")
    return matched


def site_width(model: nn.Module, site: str) -> int:
    """Return the number of channels of a site: the size of its last dimension."""
    transformer = check_supported(model)
    (known,) = expand_sites(transformer, site)
    block, name = Site.parse(known).block, Site.parse(known).name
    if name == "attn_probs":
        raise UserError(f"{site} has one number for each pair of tokens and no width")
    if name == "logits":
        return transformer.num_classes or transformer.embed_dim  # without classes the head is the identity
    if block is None:
        return transformer.embed_dim
    layer: Any = transformer.blocks[block]
    widths = dict.fromkeys(("q", "k", "v", "head_out"), layer.attn.proj.in_features) | {
        "mlp_neuron": layer.mlp.fc2.in_features
    }
    return int(widths.get(name, transformer.embed_dim))


def hook_point(model: VisionTransformer, site: Site) -> tuple[nn.Module, Literal["input", "output"]]:
    """Return the module at which a site is read, and on which side of it.

    q, k and v are the thirds of one output. Attention probabilities are computed beside the fused kernel, and replaced
    where their product with v arrives.
    """
    points: dict[str, tuple[nn.Module, Literal["input", "output"]]]
    if site.block is None:
        points = {"final_norm": (model.norm, "output"), "pooled": (model.head, "input"), "logits": (model, "output")}
        return points[site.name]
    block: Any = model.blocks[site.block]
    attn, mlp = block.attn, block.mlp
    # with a gate, or a norm before fc2, the activation function alone is not yet what the neuron sends on
    is_plain = isinstance(mlp, Mlp) and isinstance(mlp.norm, nn.Identity)
    points = {
        "resid_pre": (block, "input"),
        "attn_in": (block.norm1, "output"),
        "q": (attn.qkv, "output"),
        "k": (attn.qkv, "output"),
        "v": (attn.qkv, "output"),
        "attn_probs": (attn.norm, "input"),
        "head_out": (attn.proj, "input"),
        "attn_out": (block.ls1, "output"),
        "resid_mid": (block.norm2, "input"),
        "mlp_in": (block.norm2, "output"),
        "mlp_neuron": (mlp.act, "output") if is_plain else (mlp.fc2, "input"),
        "mlp_out": (block.ls2, "output"),
        "resid_post": (block, "output"),
    }
    return points[site.name]


def _check_block(name: str, block: Any, width: int) -> None:
    _check_forward(name, block, Block, ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"))
    attn, mlp = block.attn, block.mlp
    _check_forward(f"{name}.attn", attn, Attention, ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj"))
    mlp_class = next((known for known in (GluMlp, SwiGLU) if isinstance(mlp, known)), Mlp)
    _check_forward(f"{name}.mlp", mlp, mlp_class, ("act", "norm", "fc2"))
    if getattr(attn, "gate", None) is not None:  # older timm has no such attribute
        raise UserError(f"{name}.attn has a gate: sites are defined for attention without one")
    for path, linear in {"attn.qkv": attn.qkv, "attn.proj": attn.proj, "mlp.fc2": mlp.fc2}.items():
        if not isinstance(linear, nn.Linear):
            raise UserError(f"{name}.{path} is a {type(linear).__name__}: sites need a torch.nn.Linear here")
    if attn.qkv.out_features != 3 * attn.proj.in_features:
        raise UserError(f"{name}.attn.qkv has {attn.qkv.out_features} outputs: q, k and v are not thirds of it")
    if not attn.proj.out_features == mlp.fc2.out_features == width:
        raise UserError(f"{name} writes another width than the {width} channels of the residual stream")


def _check_forward(name: str, module: nn.Module, known: type[nn.Module], parts: tuple[str, ...]) -> None:
    same = isinstance(module, known) and type(module).forward is known.forward
    if same and getattr(type(module), "forward_features", None) is getattr(known, "forward_features", None):
        return
    missing = [part for part in parts if not hasattr(module, part)]
    lack = f"it has no {', '.join(missing)}" if missing else "it computes a forward of its own"
    raise UserError(
        f"{name} is a {type(module).__module__}.{type(module).__name__}, and sites are defined for "
        f"{known.__module__}.{known.__name__}: {lack}"
    )
