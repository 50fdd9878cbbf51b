"""The z+ rule: relevance of a linear layer goes to its inputs in proportion to what they add that is positive.

Z = x+ W+^T + x- W-^T,    S = R / Z,    R_in = x+ * (S W+) + x- * (S W-)
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import threshold

from impact_lightning.attribution.rules import EPS, safe_div
from impact_lightning.product import product

FEW = 64  # rows with fewer weights than this: Z as a difference would be rounding noise too often


class ZPlus:
    """The rule of one linear layer, with the LayerScale behind it folded in; the bias has no share.

    With y the output without bias, `2 Z = y + |x| |W|^T` and `2 R_in = x * (S W) + |x| * (S |W|)`: three products
    instead of four. Where every contribution is negative the difference leaves rounding noise instead of 0, and S is
    set to 0. Weight-sparse layers, where that is common, take the four products of the definition.

    Args:
        linear: The layer `y = x W^T + b`.
        gamma: LayerScale `(out,)` that multiplies its output, of any sign.
        outputs: Which of the outputs the layer has; by default all.
    """

    def __init__(self, linear: nn.Linear, gamma: Tensor | None = None, *, outputs: slice = slice(None)) -> None:
        weight = linear.weight.detach()[outputs]
        bias = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias.detach()[outputs]
        if gamma is not None:
            weight, bias = weight * gamma.detach()[:, None], bias * gamma.detach()
        self.few = bool((weight != 0).sum(1).min() < FEW)
        self.bias = bias
        # R_in = first(x) * (S first(W)) + second(x) * (S second(W)): positive and negative parts, or W and |W|
        self.first = weight.clamp(min=0) if self.few else weight
        self.second = weight.clamp(max=0) if self.few else weight.abs()

    def __call__(self, x: Tensor, output: Tensor, relevance: Tensor) -> Tensor:
        """Return the relevance of the inputs.

        Args:
            x: What the layer read, `(B, T, in)`.
            output: What it wrote, with bias and LayerScale, `(B, T, out)`.
            relevance: The relevance of that.
        """
        if self.few:
            first, second = x.clamp(min=0), x.clamp(max=0)
            s = safe_div(relevance, product(first, self.first) + product(second, self.second))
        else:
            first, second = x, x.abs()
            s = self._half_shares(second, output, relevance)
        return product(s, self.first.T).mul_(first).addcmul_(product(s, self.second.T), second)

    def _half_shares(self, magnitudes: Tensor, output: Tensor, relevance: Tensor) -> Tensor:
        """Return S / 2, `(B, T, out)`; in place, and without masks of booleans, which are slow on CPUs."""
        # Z is noise up to 8 eps (|x| |W|^T + |b|), that is where 2 Z (1 - 16 eps) <= 16 eps (|b| - y)
        noise = 16 * torch.finfo(output.dtype).eps
        noise /= 1 - noise
        limit = noise * (self.bias.abs() + self.bias)  # - noise * output, which is added last
        above = product(magnitudes, self.second).sub_(self.bias + limit).add_(output, alpha=1 + noise)  # 2 Z - limit
        z = threshold(above, 0, math.inf, inplace=True).add_(output, alpha=-noise).add_(limit + 2 * EPS)
        return torch.div(relevance, z, out=z)
