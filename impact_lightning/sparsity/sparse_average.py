"""The average of sparse weights: dense while it follows them, sparse wherever it is read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from impact_lightning.sparsity.sparse_tensor import SparseTensor
from impact_lightning.types import UserError

DENSE = "dense_average"  # its place in a checkpoint
PREFIX = "ema.module."  # of the average in the state of a classifier


class SparseAverage:
    """Keeps the largest averages in evaluations and checkpoints, and all of them in between.

    What is cut off must come back: a weight that has grown anew is small in the average at first, and would be cut off
    again after each step.

    Args:
        tensors: The weights of the average.
    """

    def __init__(self, tensors: list[SparseTensor]) -> None:
        self._tensors = tensors
        self._dense: dict[str, Tensor] = {}  # what stands aside while the average is sparse

    def make_sparse(self, density: float) -> None:
        """Let the average be sparse at a density of the model, until `make_dense`."""
        for tensor in self._tensors:
            self._dense.setdefault(tensor.name, tensor.weight.clone())
            tensor.sparsify(tensor.weight, tensor.n_kept(density))

    def make_dense(self) -> None:
        """Give back what was cut off."""
        for tensor in self._tensors:
            if tensor.name in self._dense:
                tensor.weight.copy_(self._dense.pop(tensor.name))

    def save(self, checkpoint: dict[str, Any], density: float) -> None:
        """Put the sparse average where it is read from, and the dense one beside it for the fit that continues."""
        state = checkpoint["state_dict"]
        checkpoint[DENSE] = {}
        for tensor in self._tensors:
            dense = self._dense.get(tensor.name, tensor.weight)
            sparse = dense.clone()
            tensor.sparsify(sparse, tensor.n_kept(density))
            state[PREFIX + tensor.name] = sparse.view(state[PREFIX + tensor.name].shape)
            checkpoint[DENSE][tensor.name] = dense

    @torch.no_grad()
    def load(self, dense: Mapping[str, Tensor]) -> None:
        """Continue from the dense average of a checkpoint."""
        if missing := [tensor.name for tensor in self._tensors if tensor.name not in dense]:
            raise UserError(
                f"WeightSparse: {missing[0]} was dense in the fit that goes on; keep `multiples` and `dense`"
            )
        for tensor in self._tensors:
            tensor.weight.copy_(dense[tensor.name])
