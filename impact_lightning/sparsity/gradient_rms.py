"""The size of a gradient: its root mean square over all parameters, limited or set to one."""

import math
from typing import Literal

import torch
from torch import Tensor

GradientRule = Literal["clip", "normalise", "none"]
SMALL = 1e-5  # added before a division


@torch.no_grad()
def scale_gradient(gradients: list[Tensor], rule: GradientRule) -> float:
    """Return the root mean square of all gradients, and bring it to at most 1 or to 1, in place.

    Args:
        gradients: Gradients of all parameters.
        rule: `clip` divides by what is above 1, `normalise` always divides, `none` leaves gradients alone.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    rms = float(norm) / math.sqrt(sum(gradient.numel() for gradient in gradients))
    if rule == "normalise":
        torch._foreach_mul_(gradients, 1 / (rms + SMALL))
    elif rule == "clip" and rms > 1:
        torch._foreach_mul_(gradients, 1 / rms)
    return rms
