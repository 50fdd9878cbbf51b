"""One-shot pruning: weights and what their layers read become masks and pruned weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from impact_lightning.sparsity import scores
from impact_lightning.sparsity.calibration import Inputs
from impact_lightning.sparsity.masks import NofM, global_masks, n_of_m_mask, row_mask, tensor_mask
from impact_lightning.sparsity.ratios import mapped_ratios, outlier_ratios, outlier_shares
from impact_lightning.sparsity.recipe import Recipe
from impact_lightning.sparsity.sparse_gpt import sparse_gpt
from impact_lightning.sparsity.targets import Target


@dataclass(frozen=True)
class Pruned:
    """One pruned tensor: its weights with exact zeros, and which are kept, both in the shape of the parameter."""

    weight: Tensor
    mask: Tensor

    @property
    def sparsity(self) -> float:
        """Return the share of weights that were removed."""
        return 1 - int(self.mask.sum()) / self.mask.numel()


def layer_ratios(
    targets: list[Target], recipe: Recipe, sparsity: float, inputs: Mapping[str, Inputs]
) -> dict[str, float]:
    """Return how much of each layer is pruned."""
    if isinstance(recipe.ratios, dict):
        return mapped_ratios(targets, sparsity, recipe.ratios)
    if recipe.ratios == "outliers":
        return outlier_ratios(targets, sparsity, outlier_shares(targets, inputs))
    return {target.name: sparsity for target in targets}


@torch.no_grad()
def prune_layers(
    targets: list[Target], recipe: Recipe, ratios: Mapping[str, float], inputs: Mapping[str, Inputs]
) -> dict[str, Pruned]:
    """Return the pruned tensors by name; the model is left as it is.

    Args:
        targets: The layers to prune, with their dense weights.
        recipe: How to choose.
        ratios: How much of each; equal ones in scope `global`.
        inputs: What the layers read, where the method asks for it.
    """
    if recipe.scope == "global":
        folded = {target.name: _folded(target, recipe, inputs) for target in targets}
        masks = global_masks(folded, next(iter(ratios.values())))
        return {target.name: _masked(target, masks[target.name]) for target in targets}
    return {
        target.name: _prune_layer(target, recipe, ratios[target.name], inputs.get(target.name)) for target in targets
    }


def score(target: Target, recipe: Recipe, inputs: Inputs | None) -> Tensor:
    """Return the scores `(out, in)` of a layer by a method that leaves the kept weights alone."""
    if recipe.method == "random":
        return scores.random(target.name, target.weight, recipe.seed)
    if recipe.method == "magnitude":
        return scores.magnitude(target.weight)
    assert inputs is not None
    return scores.wanda(target.weight, inputs.norms)


def _folded(target: Target, recipe: Recipe, inputs: Mapping[str, Inputs]) -> Tensor:
    """Return scores that compare between layers: they carry the LayerScale that their branch passes through."""
    own = score(target, recipe, inputs.get(target.name))
    return own * target.gain if recipe.fold_layer_scale and recipe.method != "random" else own


def _prune_layer(target: Target, recipe: Recipe, ratio: float, inputs: Inputs | None) -> Pruned:
    if ratio == 0:  # to the last bit, whatever the method
        return _masked(target, torch.ones_like(target.weight, dtype=torch.bool))
    if recipe.method == "sparsegpt":
        assert inputs is not None
        assert inputs.gram is not None
        prune = recipe.scope if isinstance(recipe.scope, NofM) else ratio
        parts = [sparse_gpt(part, inputs.gram, inputs.tokens, prune) for part in _thirds(target.weight, target, recipe)]
        weight, mask = (torch.cat(side).view_as(target.layer.weight) for side in zip(*parts, strict=True))
        return Pruned(weight, mask & (weight != 0))  # weights of silent inputs too
    values = score(target, recipe, inputs)
    if isinstance(recipe.scope, NofM):
        return _masked(target, n_of_m_mask(values, recipe.scope))
    if recipe.scope == "row":
        return _masked(target, row_mask(values, ratio))
    return _masked(target, torch.cat([tensor_mask(part, ratio) for part in _thirds(values, target, recipe)]))


def _thirds(matrix: Tensor, target: Target, recipe: Recipe) -> tuple[Tensor, ...]:
    """Return q, k and v one by one where they are not to be compared with each other."""
    return matrix.chunk(3) if recipe.split_qkv and target.name.endswith("attn.qkv.weight") else (matrix,)


def _masked(target: Target, mask: Tensor) -> Pruned:
    weight = target.layer.weight.detach()
    mask = mask.view_as(weight) & (weight != 0)  # what is zero already stays so
    return Pruned(weight.masked_fill(~mask, 0), mask)
