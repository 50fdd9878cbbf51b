"""Means of all nodes over general images: what replaces a node that a circuit leaves out."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from impact_lightning.backbones import capture
from impact_lightning.circuits.nodes import Nodes, NodeSite
from impact_lightning.files import atomic_write
from impact_lightning.ranks import all_sum, all_union
from impact_lightning.types import UserError

Constant = Literal["mean", "mean_prefix_patch", "mean_position", "zero"]
CONSTANTS: tuple[Constant, ...] = ("mean", "mean_prefix_patch", "mean_position", "zero")


@dataclass(frozen=True)
class Origin:
    """What means are of; those of another origin are no constants for a model.

    Args:
        weights: Fingerprint of the weights.
        nodes: The nodes.
        data: Fingerprint of the images.
        transform: How images are prepared, as JSON.
        images: How many were read.
        precision: Of the forward passes.
    """

    weights: str
    nodes: str
    data: str
    transform: str
    images: int
    precision: str


@dataclass(frozen=True)
class Means:
    """Sums over images of every node at every token.

    Args:
        sums: `(T, n)` float64.
        squares: Sums of squares over images and tokens `(n,)` float64.
        images: Number of images.
        n_prefix: Number of tokens before the patches.
        origin: What they are of.
    """

    sums: Tensor
    squares: Tensor
    images: int
    n_prefix: int
    origin: Origin

    def constants(self, kind: Constant) -> Tensor:
        """Return what replaces nodes, `(1 or T, n)` float64."""
        tokens = len(self.sums)
        if kind == "zero":
            return torch.zeros_like(self.sums[:1])
        if kind == "mean":
            return self.sums.sum(0, keepdim=True) / (self.images * tokens)
        by_token = self.sums / self.images
        if kind == "mean_position":
            return by_token
        groups = [part for part in by_token.split([self.n_prefix, tokens - self.n_prefix]) if len(part)]
        return torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in groups])

    def deviations(self) -> Tensor:
        """Return the standard deviation of each node over images and tokens, `(n,)`."""
        n = self.images * len(self.sums)
        variance = self.squares / n - (self.sums.sum(0) / n) ** 2
        deviation: Tensor = variance.clamp_min(0).sqrt()
        return deviation

    def write(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        about = {**asdict(self.origin), "n_prefix": self.n_prefix, "read": self.images}
        with atomic_write(path) as file:
            file.write(save({"sums": self.sums, "squares": self.squares}, metadata={"means": json.dumps(about)}))


def read_means(path: Path, origin: Origin) -> Means:
    """Read means; a file of another origin is refused, and what differs is named."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["means"])
            sums, squares = file.get_tensor("sums"), file.get_tensor("squares")
        n_prefix, read = int(about.pop("n_prefix")), int(about.pop("read"))
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} holds no means, or is damaged ({error}); remove it and they are made again") from None
    if sums.shape[1:] != squares.shape or not (sums.isfinite().all() and squares.isfinite().all()):
        raise UserError(f"{path} is damaged: its means have odd shapes or are not finite; remove it")
    for name, wanted in asdict(origin).items():
        if about.get(name) != wanted:
            raise UserError(
                f"{path} holds means of other {name}: {about.get(name)!r}, and this run has {wanted!r}; "
                "remove it, or name another file"
            )
    return Means(sums, squares, read, n_prefix, origin)


@torch.no_grad()
def measure_means(model: nn.Module, nodes: Nodes, batches: Iterable[Tensor], n_prefix: int, origin: Origin) -> Means:
    """Return the means over all images of all ranks, in one pass.

    Args:
        model: A model in evaluation mode.
        nodes: Its nodes.
        batches: This rank's images, normalised `(B, 3, h, w)`, no image twice.
        n_prefix: Number of tokens before the patches.
        origin: What they are of.
    """
    sums = squares = torch.zeros(0, dtype=torch.float64, device=next(model.parameters()).device)
    images = torch.tensor(0)
    with capture(model, [str(site) for site in nodes.sites]) as captured:
        for batch in batches:
            model(batch)
            first = captured[str(nodes.sites[0])]
            if not len(sums):
                sums = torch.zeros(first.shape[1], nodes.n, dtype=torch.float64, device=first.device)
                squares = torch.zeros(nodes.n, dtype=torch.float64, device=first.device)
            for site in nodes.sites:
                x = captured[str(site)].double()  # (B, T, w)
                sums[:, site.of] += x.sum(0)
                squares[site.of] += x.square().sum((0, 1))
            images += len(batch)
    tokens = max(all_union({len(sums)}))  # a rank may have had no images
    if not len(sums):
        sums, squares = sums.new_zeros(tokens, nodes.n), sums.new_zeros(nodes.n)
    sums, squares, images = all_sum(sums), all_sum(squares), all_sum(images)
    if not int(images):
        raise UserError("means: none of the images can be read; mend the data")
    if not sums.isfinite().all():
        raise UserError("means: some activations are not finite; the weights are damaged, or precision is too low")
    return Means(sums.cpu(), squares.cpu(), int(images), n_prefix, origin)


class Baseline:
    """Constants of all nodes, handed to gates by the sites of a hook.

    Args:
        constants: `(1 or T, n)`, or one set for each image `(B, 1 or T, n)`.
        nodes: The nodes.
    """

    def __init__(self, constants: Tensor, nodes: Nodes) -> None:
        table = constants if constants.ndim == 3 else constants[None]  # (B or 1, T or 1, n)
        groups = list(nodes.hooked())
        parts = table.split([sum(site.width for site in sites) for sites in groups], dim=-1)
        self.parts = {sites[0].start: part for sites, part in zip(groups, parts, strict=True)}

    def __call__(self, sites: Sequence[NodeSite]) -> Tensor:
        """Return what replaces the nodes of sites that share a hook."""
        part: Tensor = self.parts[sites[0].start]
        return part
