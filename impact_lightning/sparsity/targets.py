"""Targets: the weight matrices of a vision transformer that are pruned."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch.nn.functional as F
from timm.models.vision_transformer import LayerScale, VisionTransformer  # type: ignore[attr-defined]  # not in __all__
from torch import Tensor, nn

from impact_lightning.backbones import check_supported
from impact_lightning.types import UserError

BLOCKS = ["blocks.*"]  # qkv, proj, fc1 and fc2 of every block: no patch embedding, no head
NOTHING: list[str] = []


@dataclass(frozen=True, eq=False)
class Target:
    """One weight matrix that can be pruned.

    Args:
        name: Name of its parameter in the state dict.
        layer: The linear layer, or the convolution that embeds patches.
        stage: Place in the order of execution: the number of the block, -1 before the blocks, their number after them.
        site: Name of the site that the layer reads, where there is one.
        layer_scale: LayerScale that multiplies what the branch of the layer writes, where there is one.
    """

    name: str
    layer: nn.Linear | nn.Conv2d
    stage: int
    site: str | None = None
    layer_scale: LayerScale | None = None

    @property
    def gain(self) -> Tensor | float:
        """Return by how much LayerScale multiplies each row `(out, 1)` of proj and fc2, or qkv and fc1 on average."""
        if self.layer_scale is None:
            return 1.0
        gamma = self.layer_scale.gamma.detach().double().abs()
        return gamma[:, None] if self.name.endswith(("attn.proj.weight", "mlp.fc2.weight")) else gamma.mean()

    @property
    def weight(self) -> Tensor:
        """Return the weights as a matrix `(out, in)` that shares their memory."""
        return self.layer.weight.detach().flatten(1)  # a convolution: (out, C, p, p) -> (out, C * p * p)

    def rows(self, x: Tensor) -> Tensor:
        """Return the input of the layer as rows `(N, in)`, one for each token."""
        if isinstance(self.layer, nn.Conv2d):
            patches = F.unfold(x, self.layer.kernel_size, stride=self.layer.stride)  # (B, C * p * p, P)
            return patches.transpose(1, 2).flatten(0, 1)  # -> (B * P, C * p * p)
        return x.flatten(0, -2)  # (B, T, in) -> (B * T, in)

    def is_named(self, pattern: str) -> bool:
        """Return whether a name, glob, or regular expression after `re:` means this target."""
        names = [self.name, self.name.removesuffix(".weight"), *([self.site] if self.site else [])]
        if pattern.startswith("re:"):
            return any(re.fullmatch(pattern[3:], name) for name in names)
        return any(name == pattern or fnmatchcase(name, pattern) for name in names)


def find_targets(
    model: nn.Module,
    include: Iterable[str] = tuple(BLOCKS),
    exclude: Iterable[str] = (),
    *,
    options: tuple[str, str] = ("include", "exclude"),
) -> list[Target]:
    """Return the targets that a pattern of `include` means and none of `exclude`, in the order of execution.

    Args:
        model: A model that `check_supported` accepts.
        include: Names of parameters or layers (`blocks.0.mlp.fc1`), of the sites that layers read
            (`blocks.0.mlp_in`), globs of these, or after `re:` a regular expression; each has to mean something.
        exclude: The same, of what stays dense.
        options: What the two are called where a person has written them.
    """
    known = list(all_targets(check_supported(model)))
    chosen = {target for pattern in include for target in select(pattern, known, options[0])}
    chosen -= {target for pattern in exclude for target in select(pattern, known, options[1])}
    if not chosen:
        raise UserError(f"{options[0]} and {options[1]} leave no weights to prune")
    return [target for target in known if target in chosen]


def select(pattern: str, known: list[Target], option: str) -> list[Target]:
    """Return the targets that a pattern means, at least one."""
    try:
        found = [target for target in known if target.is_named(pattern)]
    except (re.error, OverflowError) as error:
        raise UserError(f"{option}: {pattern!r} is no regular expression ({error})") from None
    if not found:
        names = [target.name.removesuffix(".weight") for target in known]
        sites = [target.site for target in known if target.site]
        close = get_close_matches(pattern, names + sites, n=3)
        hint = f"; did you mean {' or '.join(close)}? Else" if close else ";"
        raise UserError(f"{option}: no weights are named {pattern!r}{hint} there are {', '.join(kinds(names))}")
    return found


def kind(name: str) -> str:
    """Return a name with a star in the place of the number of its block."""
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", name)


def kinds(names: Iterable[str]) -> list[str]:
    """Return names with those of all blocks as one, and how many they are."""
    return [f"{name} ({n})" if n > 1 else name for name, n in Counter(map(kind, names)).items()]


def all_targets(model: VisionTransformer) -> Iterator[Target]:
    """Yield everything that could be pruned: the patch embedding, the linear layers of the blocks, the heads."""
    embedding = model.patch_embed.proj
    if isinstance(embedding, nn.Conv2d) and embedding.kernel_size == embedding.stride:
        yield Target("patch_embed.proj.weight", embedding, stage=-1)
    for i, block in enumerate(model.blocks):
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                layer_scale = getattr(block, "ls1" if name.startswith("attn.") else "ls2", None)
                sites = {"attn.qkv": "attn_in", "attn.proj": "head_out", "mlp.fc2": "mlp_neuron"}
                site = f"blocks.{i}.{sites.get(name, 'mlp_in')}"
                layer_scale = layer_scale if isinstance(layer_scale, LayerScale) else None
                yield Target(f"blocks.{i}.{name}.weight", layer, i, site, layer_scale)
    for name in ("head", "head_dist"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            yield Target(f"{name}.weight", head, stage=len(model.blocks))
