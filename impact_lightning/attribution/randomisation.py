"""Randomisation: models that have unlearnt, layer by layer (Adebayo et al. 2018, arXiv 1810.03292)."""

import copy
from collections.abc import Iterator
from itertools import pairwise

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from impact_lightning.metrics.sensitivity_n import sensitivity_n

STEPS = 3  # into which the blocks are cut
HEADS = ("head", "head_dist", "norm", "fc_norm", "attn_pool")  # what reads the last block


@torch.inference_mode(mode=False)
@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter of a module anew: normal, with the mean and the deviation that its entries had.

    Weights of zero stay zero, so that a sparse model stays as sparse; a constant vector, as of a norm that was never
    trained, stays what it is.
    """
    for parameter in module.parameters():
        values = parameter.flatten()
        at = values.nonzero().flatten().cpu()
        kept = values[at.to(values.device)]
        if len(kept) > 1:
            noise = torch.randn(len(kept), generator=generator).to(values)
            values = values.index_copy(0, at.to(values.device), kept.mean() + kept.std() * noise)
            parameter.copy_(values.view_as(parameter))


def randomised(model: VisionTransformer, seed: int) -> VisionTransformer:
    """Return a copy of which every parameter is drawn anew."""
    copied = _copy(model)
    randomise(copied, torch.Generator().manual_seed(seed))
    return copied


def cascade(model: VisionTransformer, seed: int) -> Iterator[tuple[str, VisionTransformer]]:
    """Yield a copy of a model that is randomised from the head down: which parts are gone, and the copy as it stands.

    The stage that would come last, of every parameter, is `randomised`.
    """
    copied, generator = _copy(model), torch.Generator().manual_seed(seed)
    for name, module in copied.named_children():
        if name in HEADS:
            randomise(module, generator)
    yield "head", copied
    blocks = list(copied.blocks)
    edges = [len(blocks) * part // STEPS for part in range(STEPS, -1, -1)]
    for high, low in pairwise(edges):
        if high > low:
            for block in blocks[low:high]:
                randomise(block, generator)
            yield f"blocks {low} and above", copied


@torch.inference_mode(mode=False)  # parameters made in inference mode would have no gradients
def _copy(model: VisionTransformer) -> VisionTransformer:
    return copy.deepcopy(model)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's correlation of each pair of maps `(B, h, w)`, float64 `(B,)`; nan where one is constant.

    Example:
        >>> round(rank_correlation(torch.tensor([[[1.0, 2.0, 5.0]]]), torch.tensor([[[0.0, 4.0, 3.0]]])).item(), 6)
        0.5
    """
    return sensitivity_n(a.flatten(1), b.flatten(1), kind="spearman")
