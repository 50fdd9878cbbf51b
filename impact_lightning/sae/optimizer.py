"""Adam for dictionaries: project, clip, step, renormalise."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from impact_lightning.sae.unit_rows import project, renormalise

CHUNK = 2048  # rows that go through all parts of a pass while they are in cache


class DictionaryAdam(Optimizer):
    """Fused Adam that keeps the rows of chosen parameters at unit length.

    A step is: remove the part of each row's gradient along the row, clip the norm of all gradients, Adam, and give the
    rows unit length again. Gradients must be final: reduced over ranks and free of a loss scale. There is no weight
    decay.

    Args:
        params: Parameters, or groups of them. A group may say `unit_rows` (rows of unit length), `projected` (their
            gradients come without a part along the rows) or `non_negative`.
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
        kinds = dict.fromkeys(("unit_rows", "projected", "non_negative"), False)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, **kinds})
        self.max_norm = max_norm

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
        work = [(w, w.grad, group) for group in self.param_groups for w in group["params"] if w.grad is not None]
        if not work:
            return loss
        for weight, gradient, group in work:
            if group["unit_rows"] and not group["projected"]:
                project(gradient, weight)
        norms = torch._foreach_norm([gradient for _, gradient, _ in work])
        self.gradient_norm = torch.linalg.vector_norm(torch.stack(norms))
        # The kernel divides gradients by this number on the fly: clipping without a pass of its own.
        scale = None if self.max_norm is None else (self.gradient_norm / self.max_norm).clamp_(min=1).float()
        for weight, gradient, group in work:
            self._adam(weight, gradient, group, scale)
        return loss

    def _adam(self, weight: Tensor, gradient: Tensor, group: dict[str, Any], scale: Tensor | None) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        tensors = (weight, gradient, state["exp_avg"], state["exp_avg_sq"])
        for rows, slope, mean, square in zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True):
            torch._fused_adam_(
                [rows],
                [slope],
                [mean],
                [square],
                [],
                [state["step"]],
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=scale,
            )
            if group["unit_rows"]:
                renormalise(rows)
            if group["non_negative"]:
                rows.clamp_(min=0)
