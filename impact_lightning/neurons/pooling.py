"""Pooling: one activation of a unit for an image, out of those on its tokens."""

from typing import Literal

from torch import Tensor

Pooling = Literal["cls", "patch_max", "patch_mean"]


def pool(x: Tensor, how: Pooling, n_prefix: int) -> Tensor:
    """Return one number for each image and unit, `(B, T, n) -> (B, n)`.

    Args:
        x: Activations on all tokens.
        how: On the class token, or the largest or mean one on patches.
        n_prefix: Number of tokens before the patches; the first of them is the class token.
    """
    if how == "cls":
        return x[:, 0]
    patches = x[:, n_prefix:]  # (B, P, n)
    return patches.amax(1) if how == "patch_max" else patches.mean(1)
