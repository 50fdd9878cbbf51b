"""Dead latents: those that have not fired for many tokens, and AuxK, which revives them."""

import torch
from torch import Tensor, nn

from impact_lightning.ranks import all_sum, rank_and_world
from impact_lightning.sae.reconstruction import DeadCodes, Weights

DEAD_AFTER = 10_000_000


class DeadLatents(nn.Module):
    """Counts for each latent the tokens since it last fired, over all ranks.

    Args:
        n_latents: Number of latents.
        dead_after: Tokens of silence after which a latent is dead; None takes ten million, or one per cent of the
            training if that is less.
    """

    silent: Tensor  # (F,) int64

    def __init__(self, n_latents: int, dead_after: int | None = None) -> None:
        super().__init__()
        self.is_given = dead_after is not None
        self.dead_after = DEAD_AFTER if dead_after is None else dead_after
        self.register_buffer("silent", torch.zeros(n_latents, dtype=torch.int64))

    def expect(self, n_tokens: int) -> None:
        """Take over how long the training will be."""
        if not self.is_given:
            self.dead_after = max(1, min(DEAD_AFTER, n_tokens // 100))

    def indices(self) -> Tensor:
        """Return which latents are dead, `(n,)`."""
        return (self.silent >= self.dead_after).nonzero().squeeze(1)

    @torch.no_grad()
    def update(self, counts: Tensor, n_tokens: int) -> None:
        """Count a batch.

        Args:
            counts: How often each latent fired on this rank, `(F,)` int64.
            n_tokens: Tokens of the batch, of all ranks.
        """
        self.silent.add_(n_tokens).masked_fill_(all_sum(counts) > 0, 0)


@torch.no_grad()
def dead_codes(xc: Tensor, weights: Weights, latents: Tensor, k: int, relu: bool = True) -> DeadCodes:
    """Return the `k` largest codes of each token among dead latents.

    Args:
        xc: Centred inputs `(B, D)`.
        weights: The dictionary.
        latents: Which latents are dead, `(n,)`.
        k: Number of latents for each token, at most n.
        relu: Whether negative pre-activations count as 0 and pass no gradient.
    """
    z = torch.addmm(weights.b_enc[latents], xc, weights.w_enc[latents].T)  # (B, n)
    chosen = torch.ones_like(z, dtype=torch.bool)
    if k < len(latents):
        best = z.topk(k, dim=1, sorted=False).indices
        chosen = torch.zeros_like(chosen).scatter_(1, best, True)
    if relu:
        chosen &= z > 0
    return DeadCodes(latents, z * chosen, chosen)


def aux_loss(error: Tensor, from_dead: Tensor, target: Tensor) -> Tensor:
    """Return `Σ‖e − ê‖² / Σ‖e − ē‖² · Σ‖y − ȳ‖² / N`: the share of the error that dead latents leave unexplained.

    It is in units of the target's variance, as the reconstruction error is: a weight then means the same for
    activations of any scale. With the share alone, AuxK is lost beside the error of rows of length √D, and latents stay
    dead. Over the tokens of all ranks: each rank returns its part times the number of ranks, as ranks average
    gradients.

    Args:
        error: What the living latents leave, `(B, D)`; a constant here.
        from_dead: Its reconstruction from dead latents, `(B, D)`.
        target: What the output should be, `(B, D)`.
    """
    error = error.detach()
    n_tokens = all_sum(torch.tensor(float(len(error)), device=error.device))
    total, variance = _variation(error, n_tokens), _variation(target.detach(), n_tokens) / n_tokens
    share = (error - from_dead).square().sum() / torch.where(total > 0, total, 1)
    return share * (total > 0) * variance * rank_and_world()[1]


def _variation(x: Tensor, n_tokens: Tensor) -> Tensor:
    """Return `Σ‖x − x̄‖²` over all ranks."""
    mean = all_sum(x.sum(0)) / n_tokens
    return all_sum((x - mean).square().sum())
