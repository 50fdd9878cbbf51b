"""Transformer attribution (Chefer et al. 2021, arXiv 2012.09838) in closed form, for whole batches."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.block_relevance import RULES, Rules, refuse_unruled
from impact_lightning.attribution.method import (
    Method,
    admit,
    differentiating,
    on_grid,
    outside_inference,
    own_logits,
    refuse_non_finite,
)
from impact_lightning.attribution.pooling import pooled_row, pooled_tokens
from impact_lightning.attribution.seeds import seed_relevance
from impact_lightning.attribution.trace import (
    ALL,
    attend,
    attention_places,
    may_narrow,
    of_images,
    prob_gradients,
    tracing,
)
from impact_lightning.types import UserError

Relevance = Literal["lrp", "attention"]
IN_CACHE = 2**21  # bytes of the widest tensor of the images that are swept together on a CPU
IN_MEMORY = 2**28  # the same on an accelerator


@dataclass(frozen=True)
class TransformerAttribution(Method):
    """Relevance of patches: attention probabilities, weighted by their gradients, rolled out over the blocks.

        M_l = mean_heads max(0, dA_l * R_A_l),    r (I + M_L) ... (I + M_start)

    with r the pooling's own weights of tokens; the map is not normalised. By the published rules (`chefer`) propagated
    relevance has the sum 1 at every block, except for what is lost: z+ drops that of an output to which all inputs
    contribute negatively, and the mean of tokens that of a channel in which all of them are negative. Those of
    `impact_reported` do not keep the sum.

    Args:
        relevance: What is weighted: relevance propagated down from the logit (`lrp`), or the attention probabilities
            themselves (`attention`, arXiv 2103.15679), which costs one forward and backward.
        rules: How relevance propagates: as published (`chefer`), with LayerScale folded into weights; or as reported
            for DeiT-III (`impact_reported`, arXiv 2603.15919), which divides by LayerScale and passes values alone.
        start_block: First block that is rolled out, counted from the end where negative. The published method has 0,
            the scripts behind its tables 1.
        row_normalise: Divide the rows of I + M by their sums, which the published method does not.
    """

    relevance: Relevance = "lrp"
    rules: Rules = "chefer"
    start_block: int = 0
    row_normalise: bool = False

    def __post_init__(self) -> None:
        """Refuse rules where nothing propagates."""
        if self.relevance == "attention" and self.rules != "chefer":
            raise UserError(f"rules {self.rules!r} are of relevance 'lrp': 'attention' propagates none")

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        """Return relevance `(B, gh, gw)`, as `Method` has it."""
        model = admit(model, images, targets)
        start = first_block(model, self.start_block)
        if self.relevance == "lrp":
            refuse_unruled(model)
        with differentiating(images):
            sweep = Sweep(
                model, outside_inference(images), outside_inference(targets), start, self.relevance, self.rules
            )
            for i in reversed(range(start, len(model.blocks))):
                sweep.descend(i, row_normalise=self.row_normalise)
        return refuse_non_finite(on_grid(model, images, sweep.row), "the relevance")


def first_block(model: VisionTransformer, start_block: int) -> int:
    """Return the number of a block that may be counted from the end."""
    depth = len(model.blocks)
    if not -depth <= start_block < depth:
        raise UserError(f"start_block {start_block}: the model has {depth} blocks")
    return range(depth)[start_block]


class Sweep:
    """One forward, one backward to O of every block, and what goes down from the logits of the images' own classes.

    Attributes:
        row: The rollout as a row vector `(B, T)`: `r <- r + r M` costs T^2 where a matrix product costs T^3.
        relevance: Of what the block above wrote, `(B, R, D)`: R tokens have relevance. None for attention alone.
    """

    def __init__(
        self,
        model: VisionTransformer,
        images: Tensor,
        targets: Tensor,
        start: int,
        relevance: Relevance,
        rules: Rules = "chefer",
    ) -> None:
        self.model = model
        self.start = start
        self.rules = RULES[rules]
        blocks = range(start, len(model.blocks))
        self.rows = pooled_tokens(model)  # of the block that comes next
        places = self.rules.places if relevance == "lrp" else attention_places
        with tracing(model, blocks, places, leaves=[start], narrow=may_narrow(model, self.rows)) as trace:
            logits = model(images)
            own = own_logits(logits, targets).sum()  # images are independent: one backward serves them all
            self.gradients = torch.autograd.grad(own, [seen["mixed"] for seen in trace])
        with torch.no_grad():
            self.trace = [{name: x.detach() for name, x in seen.items()} for seen in trace]
            self.row = pooled_row(model, self.trace[-1]["qkv"])
            self.relevance: Tensor | None = None
            if relevance == "lrp":
                self.relevance = seed_relevance(model, self.trace[-1]["resid_post"], targets)

    @torch.no_grad()
    def descend(self, i: int, *, row_normalise: bool = False) -> None:
        """Take the row, and the relevance, from above block i to below it."""
        block: Any = self.model.blocks[i]
        seen, gradient = self.trace[i - self.start], self.gradients[i - self.start]
        rules = None if self.relevance is None else self.rules(block)
        parts = []
        for images in self._groups(block, gradient):
            here, row = of_images(seen, images), self.row[images]
            attended = attend(block, here, self.rows)
            weights = prob_gradients(block, attended, gradient[images], self.rows)  # dA, (B, H, R, T)
            if rules is None or self.relevance is None:
                weights.mul_(attended.probs)
            else:
                through = rules.to_attention(here, attended, self.relevance[images], self.rows)
                weights.mul_(through.probs)
                if i > self.start:
                    parts.append(rules.to_input(here, attended, through, self.rows))
            _roll(row, weights.clamp_(min=0), self.rows, row_normalise=row_normalise)
        if parts:
            self.relevance = torch.cat(parts)
        self.rows = ALL

    def _groups(self, block: Any, gradient: Tensor) -> list[slice]:
        """Return the images that are swept together: on a CPU so few that what a step writes is still in cache."""
        n_images, n_tokens = self.row.shape
        widest = n_tokens * max(block.mlp.fc2.in_features, block.attn.num_heads * n_tokens) * gradient.element_size()
        size = max(1, (IN_CACHE if gradient.device.type == "cpu" else IN_MEMORY) // widest)
        return [slice(i, i + size) for i in range(0, n_images, size)]


def _roll(row: Tensor, weights: Tensor, rows: slice, *, row_normalise: bool) -> None:
    """Set r to `r (I + M)` in place, with M the mean over heads of `weights` `(B, H, R, T)`; only `rows` have any r."""
    n_heads = weights.shape[1]
    if row_normalise:
        row[:, rows] /= 1 + weights.sum(dim=(1, 3)) / n_heads
    rolled = row[:, None, None, rows] @ weights  # (B, 1, 1, R) x (B, H, R, T) -> (B, H, 1, T)
    row += rolled.sum((1, 2)) / n_heads
