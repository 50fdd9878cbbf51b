"""What surrounds a step of the optimiser in a weight-sparse training."""

import torch
from torch import Tensor
from torch.optim import Optimizer

from impact_lightning.sparsity.density_schedule import DensitySchedule
from impact_lightning.sparsity.gradient_rms import GradientRule, scale_gradient
from impact_lightning.sparsity.sparse_tensor import SparseTensor


class SparseSteps:
    """Scales gradients and learning rates before a step, and keeps the largest weights after it.

    Args:
        tensors: The weights that become sparse.
        schedule: The course of their density.
        total: Number of steps of the whole fit.
        sharkfin: Whether the learning rate is multiplied with the square root of what the density has still to fall.
        gradient: What is done to the root mean square of the gradient.
        regrow: Whether weights that were zero may come back.
    """

    def __init__(
        self,
        tensors: list[SparseTensor],
        schedule: DensitySchedule,
        total: int,
        *,
        sharkfin: bool,
        gradient: GradientRule,
        regrow: bool,
    ) -> None:
        self.tensors = tensors
        self.schedule = schedule
        self.total = total
        self.sharkfin = sharkfin
        self.gradient: GradientRule = gradient
        self.regrow = regrow
        self.gradient_rms = 0.0  # of the last step
        self.rate = 0.0  # learning rate of the last step, of the first group
        self.reached = 1.0  # density of the model by now
        self._rates: list[float] = []  # of the parameter groups, while others are in force
        self._dead: list[Tensor] = []  # what was zero before the step, where it has to stay so

    def density(self, steps: int) -> float:
        """Return the density of the model after so many steps."""
        return self.schedule.density(steps, self.total)

    def rate_factor(self, steps: int) -> float:
        """Return the factor of the learning rate after so many steps."""
        return self.schedule.sharkfin(steps, self.total) if self.sharkfin else 1.0

    def before(self, optimizer: Optimizer, steps: int) -> None:
        """Scale the gradient and, for this step, the learning rate; so many steps were made."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.gradient_rms = scale_gradient(gradients, self.gradient)
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= self.rate_factor(steps)
        self.rate = optimizer.param_groups[0]["lr"]
        if not self.regrow and self.density(steps) < 1:
            self._dead = [tensor.weight == 0 for tensor in self.tensors]

    @torch.no_grad()
    def after(self, optimizer: Optimizer, steps: int) -> None:
        """Give back the learning rate, and keep the largest weights; so many steps were made."""
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        for tensor, dead in zip(self.tensors, self._dead, strict=False):  # none are dead where weights come back
            tensor.weight.masked_fill_(dead, 0.0)
        self.sparsify(steps)

    def sparsify(self, steps: int) -> None:
        """Bring all tensors to the density after so many steps."""
        self.reached = self.density(steps)
        for tensor in self.tensors:
            tensor.sparsify(tensor.weight, tensor.n_kept(self.reached))
