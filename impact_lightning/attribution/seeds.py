"""Seeds: where relevance starts, from the one-hot of the explained class down to the tokens that the head reads."""

from typing import Any

from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from impact_lightning.attribution.pooling import pooled_tokens
from impact_lightning.attribution.rules import safe_div
from impact_lightning.attribution.z_plus import ZPlus


def seed_relevance(model: VisionTransformer, stream: Tensor, targets: Tensor) -> Tensor:
    """Return the relevance of what the last block wrote: `(B, R, D)`, of the R tokens that the head reads.

    A head's z+ rule leads to the pooled channels; norms pass relevance unchanged. Of two heads, each starts with 1/2.
    The mean of tokens passes the relevance of a channel on in proportion to the positive parts, `x_t+ / sum_t x_t+`.

    Args:
        model: A model whose pooling has a rule.
        stream: What the last block wrote `(B, T, D)`.
        targets: The explained class of each image, `(B,)`.
    """
    tokens: Tensor = model.norm(stream)
    one_hot = F.one_hot(targets, model.num_classes).to(tokens.dtype)[:, None]  # (B, 1, C)
    read = tokens[:, pooled_tokens(model)]
    if isinstance(model, VisionTransformerDistilled):
        r = read.new_empty(read.shape)
        for t, head in enumerate((model.head, model.head_dist)):
            r[:, t : t + 1] = _through(head, read[:, t : t + 1], one_hot / 2)
        return r
    pooled = model.forward_head(tokens, pre_logits=True)[:, None]  # (B, 1, D)
    r = _through(model.head, pooled, one_hot)  # (B, 1, D)
    if model.global_pool == "token":
        return r
    positive = read.clamp(min=0)
    return positive * safe_div(r, positive.sum(1, keepdim=True))


def _through(head: Any, x: Tensor, relevance: Tensor) -> Tensor:
    return ZPlus(head)(x, head(x), relevance)
