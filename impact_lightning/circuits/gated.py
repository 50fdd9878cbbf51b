"""A gated model: a frozen vision transformer in which each image sees a circuit of its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from impact_lightning.circuits.gate import Gate
from impact_lightning.circuits.nodes import Nodes, NodeSite, hook_of

Baseline = Callable[[Sequence[NodeSite]], Tensor]  # what replaces the nodes of sites that share a hook: (B|1, T|1, w)


class Gated:
    """Runs a model with gates at all nodes; made by `gating`."""

    def __init__(self, model: nn.Module, nodes: Nodes) -> None:
        self.model = model
        self.nodes = nodes
        self.masks: dict[int, Tensor] = {}  # by the first node of the sites of a hook; none outside of a call
        self.baseline: Baseline | None = None  # without one, the first half of the images are donors

    def __call__(self, images: Tensor, masks: Tensor, baseline: Baseline) -> Tensor:
        """Return the logits `(B, C)`.

        Args:
            images: Images `(B, 3, h, w)`.
            masks: Which nodes are on in each image, from 0 to 1, `(B, n)`.
            baseline: What replaces nodes where they are off.
        """
        return self._run(images, masks, baseline)

    def resampled(self, images: Tensor, donors: Tensor, masks: Tensor) -> Tensor:
        """Return the logits `(B, C)` where a node that is off has its value on another image, in the whole model.

        Args:
            images: Images `(B, 3, h, w)`.
            donors: The other image of each `(B, 3, h, w)`.
            masks: Which nodes are on in each image, from 0 to 1, `(B, n)`.
        """
        return self._run(torch.cat([donors, images]), masks, None)[len(donors) :]

    def _run(self, images: Tensor, masks: Tensor, baseline: Baseline | None) -> Tensor:
        groups = list(self.nodes.hooked())
        parts = masks.split([sum(site.width for site in sites) for sites in groups], dim=1)
        self.masks = {sites[0].start: part for sites, part in zip(groups, parts, strict=True)}
        self.baseline = baseline
        try:
            logits: Tensor = self.model(images)
        finally:
            self.masks, self.baseline = {}, None
        return logits

    def flow(self, sites: Sequence[NodeSite], x: Tensor) -> Tensor:
        """Return what flows on."""
        if not self.masks:
            return x
        mask = self.masks[sites[0].start]
        if self.baseline is None:
            donors, own = x.chunk(2)
            return torch.cat([donors, Gate.apply(own, mask, donors.detach())])
        return Gate.apply(x, mask, self.baseline(sites))  # type: ignore[no-any-return]


@contextmanager
def gating(model: nn.Module, nodes: Nodes) -> Iterator[Gated]:
    """Hook gates into a model for as long as circuits are run.

    Args:
        model: A frozen model in evaluation mode.
        nodes: Its nodes.
    """
    gated, hooks = Gated(model, nodes), []
    with torch.compiler.set_stance("force_eager"):
        try:
            for sites in nodes.hooked():
                module, side = hook_of(model, sites)
                if side == "input":
                    hooks.append(module.register_forward_pre_hook(_on_input(gated, sites)))
                else:
                    hooks.append(module.register_forward_hook(_on_output(gated, sites)))
            yield gated
        finally:
            for hook in hooks:
                hook.remove()


def _on_input(gated: Gated, sites: Sequence[NodeSite]) -> Callable[..., Any]:
    return lambda _, args: (gated.flow(sites, args[0]), *args[1:])


def _on_output(gated: Gated, sites: Sequence[NodeSite]) -> Callable[..., Any]:
    return lambda _, _args, output: gated.flow(sites, output)
