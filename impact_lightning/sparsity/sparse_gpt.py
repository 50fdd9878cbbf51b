"""SparseGPT (arXiv 2301.00774): weights go column by column, and those to the right make up for it."""

import torch
from torch import Tensor

from impact_lightning.sparsity.masks import NofM, keep_highest, n_zeros

BLOCK = 128  # columns whose mask is chosen at once
DAMPING = 0.01  # of the mean of the diagonal


def sparse_gpt(weight: Tensor, gram: Tensor, tokens: int, prune: float | NofM) -> tuple[Tensor, Tensor]:
    """Return the weights `(out, in)` after pruning, and which of them are kept.

    A sparsity is met within each block of 128 columns over all rows, so that the whole has exactly
    `floor(sparsity * numel)` zeros; a pattern when its group of columns is reached.

    Args:
        weight: Weights W `(out, in)`.
        gram: `X^T X` `(in, in)` of the inputs X `(tokens, in)`.
        tokens: Number of rows of X.
        prune: Sparsity, or how many weights of a group are kept.
    """
    h = 2 * gram.double() / tokens
    w = weight.double().clone()
    silent = h.diagonal() == 0  # inputs that are always zero: their weights do nothing
    h.diagonal()[silent] = 1
    w[:, silent] = 0
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    u = torch.linalg.cholesky(inverse, upper=True)  # (in, in), H^-1 = U^T U
    kept = torch.ones_like(w, dtype=torch.bool)
    n_in = w.shape[1]
    width = BLOCK if isinstance(prune, float) else max(BLOCK // prune.of, 1) * prune.of  # no group across two blocks
    for start in range(0, n_in, width):
        stop = min(start + width, n_in)
        errors = _prune_block(
            w[:, start:stop], u[start:stop, start:stop], kept[:, start:stop], _zeros(w, start, stop, prune)
        )
        w[:, stop:] -= errors @ u[start:stop, stop:]
    return w.to(weight.dtype), kept


def _zeros(w: Tensor, start: int, stop: int, prune: float | NofM) -> int | NofM:
    """Return the zeros of a block: so many that the count is exact up to every end of a block."""
    if isinstance(prune, NofM):
        return prune
    return n_zeros(prune, stop * len(w)) - n_zeros(prune, start * len(w))


def _prune_block(w: Tensor, u: Tensor, kept: Tensor, zeros: int | NofM) -> Tensor:
    """Prune the columns `(out, b)` of a block in place; return the error of each weight over `U_jj`, `(out, b)`."""
    errors = torch.zeros_like(w)
    if isinstance(zeros, int):
        scores = (w / u.diagonal()).square()
        kept.copy_(keep_highest(scores.flatten(), zeros).view(w.shape))
    for j in range(w.shape[1]):
        if isinstance(zeros, NofM) and j % zeros.of == 0:
            group = slice(j, j + zeros.of)
            scores = (w[:, group] / u.diagonal()[group]).square()
            kept[:, group] = keep_highest(scores, zeros.of - zeros.keep)
        column = w[:, j].clone()
        w[:, j].masked_fill_(~kept[:, j], 0)
        errors[:, j] = (column - w[:, j]) / u[j, j]
        w[:, j + 1 :] -= errors[:, j, None] * u[j, j + 1 :]  # (out, 1) * (b - j - 1,)
    return errors
