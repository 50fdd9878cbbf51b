"""Adam for dictionaries: project, clip, step, renormalise."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Adam

from impact_lightning.sae.sparse import row_dots

CHUNK = 256  # rows that are projected and measured while they are in cache


class DictionaryAdam(Adam):
    """Fused Adam that keeps the rows of chosen parameters at unit length.

    A step is: remove the part of each row's gradient along the row, clip the norm of all gradients, Adam, and give the
    rows unit length again. Gradients must be final: reduced over ranks and free of a loss scale.

    Args:
        params: Parameters, or groups of them. A group may say `unit_rows` (rows of unit length) or `non_negative`.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        max_norm: Clip the norm of all gradients to this, or None.
    """

    gradient_norm: Tensor | None = None  # () of the last step, after projection and before clipping

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        max_norm: float | None = 1.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=True)
        for group in self.param_groups:
            group.setdefault("unit_rows", False)
            group.setdefault("non_negative", False)
        self.max_norm = max_norm
        self.grad_scale: Tensor | None = None

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step; see the class."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.gradient_norm = torch.linalg.vector_norm(torch.stack(self._project()))
        # The fused kernel divides gradients by this number on the fly: clipping without a pass of its own.
        self.grad_scale = None if self.max_norm is None else (self.gradient_norm / self.max_norm).clamp_(min=1).float()
        super().step()
        for group in self.param_groups:
            for weight in group["params"]:
                if group["unit_rows"]:
                    renormalise(weight)
                if group["non_negative"]:
                    weight.clamp_(min=0)
        return loss

    def _project(self) -> list[Tensor]:
        """Project the gradients of unit rows, and return the norms of parts of the gradient."""
        norms = [torch.zeros((), device=self.param_groups[0]["params"][0].device)]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if not group["unit_rows"]:
                    norms.append(torch.linalg.vector_norm(weight.grad))
                    continue
                for rows, gradient in zip(weight.split(CHUNK), weight.grad.split(CHUNK), strict=True):
                    project(gradient, rows)
                    norms.append(torch.linalg.vector_norm(gradient))
        return norms


def project(gradient: Tensor, rows: Tensor) -> None:
    """Remove from each row of `gradient` its part along the unit row of `rows`, in place: `g −= ⟨g, d⟩ d`."""
    each = torch.arange(len(rows), device=rows.device)
    gradient.addcmul_(rows, row_dots(gradient, each, rows, each)[:, None], value=-1)


def renormalise(rows: Tensor) -> None:
    """Give every row unit length, in place; a row of zeros stays."""
    for part in rows.split(CHUNK):
        length = torch.linalg.vector_norm(part, dim=1, keepdim=True)
        part.div_(torch.where(length > 0, length, 1))
