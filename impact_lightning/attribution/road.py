"""ROAD (arXiv 2202.00449): removed pixels become the weighted mean of their neighbours, and noise hides where they are.

The means of all removed pixels hold at once: `u_i = Σ_j w_ij u_j / Σ_j w_ij` over the eight neighbours of a pixel i,
1/6 along the edges and 1/12 across the corners, those outside the image left out. Kept pixels stand still. On removed
pixels this is a symmetric positive definite system, solved by conjugate gradients for images and channels together.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from impact_lightning.attribution.multigrid import Multigrid
from impact_lightning.attribution.substrates import normal
from impact_lightning.types import UserError

WEIGHTS = ((1.0, 2.0, 1.0), (2.0, 0.0, 2.0), (1.0, 2.0, 1.0))  # in twelfths
IN_CACHE = 2**19  # numbers of a vector that a processor works on fast
MOST_STEPS = 500


@dataclass(frozen=True)
class Imputed:
    """Removed pixels are imputed from those that stay; there is no image with everything removed.

    Args:
        noise: Standard deviation of the noise on imputed pixels, after normalisation.
        seed: Its seed.
    """

    noise: float = 0.01
    seed: int = 0
    is_shared: ClassVar[bool] = False

    def __call__(self, images: Tensor, removed: Tensor, rows: Tensor) -> Tensor:
        """Return images `(J, C, h, w)` with removed pixels `(J, h, w)` imputed.

        The noise is a pure function of the seed, the number of an image `(J,)` and how many of its pixels are removed.
        """
        imputed = impute(images, removed)
        if self.noise == 0:
            return imputed
        noise = normal(self.seed, images, rows, removed.flatten(1).sum(1))
        return torch.where(removed[:, None], imputed + self.noise * noise, imputed)


def impute(images: Tensor, removed: Tensor, *, tolerance: float = 1e-5) -> Tensor:
    """Return images `(J, C, h, w)` in which each removed pixel `(J, h, w)` is the mean of its neighbours.

    Args:
        images: The images.
        removed: Which of their pixels are removed, bool; some must stay.
        tolerance: Norm of the residual of each system, relative to that of its right side.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0], [1.0, 5.0]]]])
        >>> impute(image, torch.tensor([[[False, False], [False, True]]])).tolist()
        [[[[0.0, 1.0], [1.0, 0.800000011920929]]]]
    """
    if bool(removed.flatten(1).all(1).any()):
        raise UserError("an image of which everything is removed cannot be imputed: fractions must stay below 1")
    values = images if images.dtype == torch.float64 else images.float()
    if images.is_cuda:
        return _solved(values, removed, tolerance).to(images.dtype)
    size = max(1, IN_CACHE // images[0].numel()) if len(images) else 1
    parts = zip(values.split(size), removed.split(size), strict=True)
    return torch.cat([_solved(*part, tolerance) for part in parts]).to(images.dtype)


def _solved(images: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """Return the solutions by conjugate gradients `(J, C, h, w)`; a system that is solved stands still."""
    unknown = removed.to(images)  # (J, h, w)
    kernel = images.new_tensor(WEIGHTS)[None, None]
    neighbours = F.conv2d(torch.ones_like(unknown[:1, None]), kernel, padding=1)[:, 0]  # (1, h, w), in the image
    kept = neighbours - F.conv2d(unknown[:, None], kernel, padding=1)[:, 0]  # (J, h, w), weight of those that stay
    precondition = Multigrid(unknown, kept * unknown, images.shape[1])
    finest = precondition.finest
    r = finest.padded(images.masked_fill(removed[:, None], 0))
    r = finest.blurred(r) * finest.unknown  # (J, C, L), the right side
    u, goal = torch.zeros_like(r), tolerance * r.norm(dim=-1, keepdim=True)
    z = precondition(r)
    p, rz = z.clone(), _dot(r, z)
    for _ in range(MOST_STEPS):
        is_open = r.norm(dim=-1, keepdim=True) > goal  # (J, C, 1)
        if not bool(is_open.any()):
            return torch.where(removed[:, None], finest.grid(u), images)
        ap = finest.applied(p)
        step = torch.where(is_open, rz / _dot(p, ap), 0.0)
        u.addcmul_(step, p)
        r.addcmul_(step, ap, value=-1)
        z = precondition(r)
        known, rz = rz, _dot(r, z)
        p.mul_(torch.where(is_open, rz / known, 0.0)).add_(z)
    raise RuntimeError(f"imputation has not converged in {MOST_STEPS} steps")


def _dot(a: Tensor, b: Tensor) -> Tensor:
    products: Tensor = torch.linalg.vecdot(a, b)
    return products[..., None]
