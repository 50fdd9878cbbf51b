"""Ablation impact: how far the logit of a class falls when its strongest units are set to their means."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from impact_lightning.backbones import patch
from impact_lightning.backbones.rest import forward_rest
from impact_lightning.metrics.class_means import ClassMeans
from impact_lightning.neurons.layers import Layer

Ranking = Literal["abs", "support"]


def top_units(scores: Tensor, layer: Layer, k: int, ranking: Ranking = "abs") -> Tensor:
    """Return the `k` units of a layer with the largest scores for each class, `(C, K) -> (C, k)`.

    They are numbers within the layer, in descending order; of equal scores the lower unit comes first. A place is -1
    where there is no unit for it: one without a score, or with a score of zero, is nobody's own.

    Args:
        scores: Attribution patching of all units; negative where a unit supports the class.
        layer: The layer.
        k: Units of each class.
        ranking: Whether those that suppress the class count like those that support it.
    """
    own = scores[:, layer.of_units]
    size = own.abs() if ranking == "abs" else -own
    size = torch.where(size > 0, size, 0.0)  # also of nan
    best = size.sort(dim=1, descending=True, stable=True)
    return torch.where(best.values > 0, best.indices, -1)[:, :k]


@torch.no_grad()
def ablated_logits(model: nn.Module, layer: Layer, stream: Tensor, units: Tensor, means: Tensor) -> Tensor:
    """Return the logits `(B, C)` with some units of each image at their means, on all tokens.

    Args:
        model: The model.
        layer: The layer of the units.
        stream: What its block reads, `(B, T, D)`.
        units: The units of each image, `(B, k)`; -1 is none.
        means: Mean of each channel of the layer, `(n * w,)`.
    """
    chosen = torch.zeros(len(units), layer.n_units + 1, dtype=torch.bool, device=units.device)
    chosen.scatter_(1, units % (layer.n_units + 1), value=True)  # -1 falls on the column that is cut off
    channels = chosen[:, None, :-1].repeat_interleave(layer.width, dim=2)  # (B, n) -> (B, 1, n * w)
    with patch(model, {layer.site: lambda x: torch.where(channels, means.to(x.dtype), x)}):
        return forward_rest(model, layer.block, stream)


class AblationImpact(ClassMeans):
    """Mean over the images of a class of `(f_c - f_c ablated) / ||f||`, f the clean logits; `(C, L)` for L layers.

    Args:
        layers: The layers whose units are ablated, one after another.
        n_classes: Number of classes.
    """

    def __init__(self, layers: Sequence[Layer], n_classes: int) -> None:
        super().__init__(len(layers), n_classes)

    def update(self, clean: Tensor, ablated: Sequence[Tensor], labels: Tensor) -> None:  # type: ignore[override]
        """Add clean logits `(B, C)`, those with each layer ablated, and labels `(B,)`."""
        own = labels[:, None]
        length = clean.double().norm(dim=1, keepdim=True)  # (B, 1)
        falls = [(clean.gather(1, own).double() - logits.gather(1, own).double()) / length for logits in ablated]
        super().update(torch.cat(falls, 1), labels)  # L x (B, 1) -> (B, L)
