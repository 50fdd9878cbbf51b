"""The rest of a model: from the residual stream before a block to the logits."""

from torch import Tensor, nn

from .sites import check_supported


def forward_rest(model: nn.Module, block: int, stream: Tensor) -> Tensor:
    """Return the logits `(B, C)` of a model that goes on from `blocks.{block}.resid_pre` `(B, T, D)`.

    Patches that are open act on what is computed; nothing is captured.

    Args:
        model: A model that `check_supported` accepts.
        block: The first block that is computed; their number computes the norm and the head alone.
        stream: What this block reads.
    """
    transformer = check_supported(model)
    for part in transformer.blocks[block:]:
        stream = part(stream)
    logits: Tensor = transformer.forward_head(transformer.norm(stream))
    return logits
