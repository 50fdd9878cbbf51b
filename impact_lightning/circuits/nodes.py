"""Nodes: the channels of a vision transformer that a circuit keeps or ablates, as one flat vector."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from impact_lightning.backbones import Site, check_supported, site_width
from impact_lightning.backbones.sites import hook_point

SITES = ("attn_in", "q", "k", "v", "attn_out", "mlp_in", "mlp_neuron", "mlp_out")  # of a block, in order of execution
Granularity = Literal["channel", "head"]


@dataclass(frozen=True)
class NodeSite:
    """The nodes of one site: one for each channel, the same on all tokens.

    Args:
        block: Number of the block.
        name: Name of the site.
        start: First of its nodes among all.
        width: How many there are.
    """

    block: int
    name: str
    start: int
    width: int

    @property
    def of(self) -> slice:
        """Its columns in a table with one column for each node."""
        return slice(self.start, self.start + self.width)

    def __str__(self) -> str:
        """Name the site."""
        return f"blocks.{self.block}.{self.name}"


class Nodes:
    """The nodes of a model, and the switches that turn them on and off: one switch may turn several nodes.

    Args:
        model: A model that `check_supported` accepts.
        granularity: Whether q, k and v have a switch for each channel or for each head.
        tie_qk: Whether a channel of q and the same channel of k have one switch.
    """

    def __init__(self, model: nn.Module, *, granularity: Granularity = "channel", tie_qk: bool = False) -> None:
        transformer: Any = check_supported(model)
        self.granularity = granularity
        self.tie_qk = tie_qk
        self.sites: list[NodeSite] = []
        self.n = 0
        for block in range(len(transformer.blocks)):
            for name in SITES:
                width = site_width(model, f"blocks.{block}.{name}")
                self.sites.append(NodeSite(block, name, self.n, width))
                self.n += width
        self.heads = [int(block.attn.num_heads) for block in transformer.blocks]
        self.switch_of = self._switches()  # (n,) int64
        self.n_switches = int(self.switch_of.max()) + 1

    def _switches(self) -> Tensor:
        """Number the switches in the order of their first nodes."""
        key = torch.arange(self.n)
        for site in self.sites:
            if self.granularity == "head" and site.name in ("q", "k", "v"):
                width = site.width // self.heads[site.block]
                key[site.of] = site.start + torch.arange(site.width) // width * width
        if self.tie_qk:
            for block in range(len(self.heads)):
                key[self.site(block, "k").of] = key[self.site(block, "q").of]
        numbers: Tensor = torch.unique(key, return_inverse=True)[1]
        return numbers

    def site(self, block: int, name: str) -> NodeSite:
        """Return a site by name."""
        return self.sites[block * len(SITES) + SITES.index(name)]

    def expand(self, switches: Tensor) -> Tensor:
        """Return the state of each node, `(P, n_switches) -> (P, n)`."""
        return switches if self.n_switches == self.n else switches[:, self.switch_of]

    def sum_by_switch(self, table: Tensor) -> Tensor:
        """Return the sum over the nodes of each switch, `(P, n) -> (P, n_switches)`."""
        return table.new_zeros(len(table), self.n_switches).index_add_(1, self.switch_of.to(table.device), table)

    def site_of_switches(self) -> Tensor:
        """Return the number of the first site that each switch turns nodes of, `(n_switches,)`."""
        site = torch.cat([torch.full((site.width,), i) for i, site in enumerate(self.sites)])  # (n,)
        first = torch.full((self.n_switches,), len(self.sites))
        return first.scatter_reduce_(0, self.switch_of, site, "amin")

    def by_site(self, table: Tensor) -> dict[str, Tensor]:
        """Return the columns of each site of a table `(P, n)`, by name."""
        parts = table.split([site.width for site in self.sites], dim=-1)
        return {str(site): part for site, part in zip(self.sites, parts, strict=True)}

    def hooked(self) -> Iterator[Sequence[NodeSite]]:
        """Yield the sites that share a hook: q, k and v are thirds of one output, others stand alone."""
        for block in range(len(self.heads)):
            attn_in, q, k, v, *others = (self.site(block, name) for name in SITES)
            yield (attn_in,)
            yield (q, k, v)
            yield from ((other,) for other in others)

    def __str__(self) -> str:
        """Say what one switch is: part of the protocol."""
        tied = ", q and k tied" if self.tie_qk else ""
        return f"{len(SITES)} sites of {len(self.heads)} blocks, q/k/v by {self.granularity}{tied}"


def hook_of(model: nn.Module, sites: Sequence[NodeSite]) -> tuple[nn.Module, str]:
    """Return the module at which sites are gated together, and on which side of it."""
    return hook_point(check_supported(model), Site(sites[0].block, sites[0].name))
