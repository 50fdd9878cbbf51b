"""Pruning a model by a recipe, at one sparsity after another."""

from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from impact_lightning.backbones import Backbone, fingerprint
from impact_lightning.ranks import rank_and_world
from impact_lightning.sparsity.calibration import Calibration, CalibrationImages, calibrate
from impact_lightning.sparsity.emptied import Emptied, emptied
from impact_lightning.sparsity.one_shot import Pruned, layer_ratios, prune_layers
from impact_lightning.sparsity.pruned_file import write_pruned
from impact_lightning.sparsity.ratios import OUTLIER, SPREAD
from impact_lightning.sparsity.recipe import Recipe
from impact_lightning.sparsity.targets import Target

NO_IMAGES = Calibration(0, {})


@dataclass(frozen=True)
class Achieved:
    """Share of zeros by name and in `total`, and what they have emptied."""

    zeros: dict[str, float]
    emptied: Emptied


class Pruning:
    """One model and one recipe: a pass of calibration over the dense model serves every sparsity.

    Args:
        backbone: What the model is.
        model: The model with its dense weights, on its device.
        targets: The layers to prune.
        recipe: How to choose.
        images: Images for calibration, where the recipe needs them.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: VisionTransformer,
        targets: list[Target],
        recipe: Recipe,
        images: CalibrationImages | None,
    ) -> None:
        self.backbone = backbone
        self.model = model
        self.targets = targets
        self.recipe = recipe
        self.images = images
        self.weights_before = fingerprint(model)
        self.dense = {target.name: target.layer.weight.detach().clone() for target in targets}
        self.calibration = NO_IMAGES  # of the dense model
        if not recipe.sequential or recipe.ratios == "outliers":
            self.calibration = self._calibrate(targets)
        self.n_images = self.calibration.images

    def at(self, sparsity: float) -> dict[str, Pruned]:
        """Return the pruned tensors by name, and leave the model with their weights."""
        self._fill(self.dense)
        ratios = layer_ratios(self.targets, self.recipe, sparsity, self.calibration.inputs)
        if not self.recipe.sequential:
            pruned = prune_layers(self.targets, self.recipe, ratios, self.calibration.inputs)
            self._fill({name: tensor.weight for name, tensor in pruned.items()})
            return pruned
        pruned = {}
        for _, stage in groupby(self.targets, lambda target: target.stage):
            layers = list(stage)
            calibration = self._calibrate(layers)  # of the blocks before as they are by now
            self.n_images = calibration.images
            part = prune_layers(layers, self.recipe, ratios, calibration.inputs)
            self._fill({name: tensor.weight for name, tensor in part.items()})
            pruned |= part
        return pruned

    def write(self, path: Path, sparsity: float) -> Achieved:
        """Write the pruned model, on the first rank; return what became of it."""
        pruned = self.at(sparsity)
        masks = {name: tensor.mask for name, tensor in pruned.items()}
        zeros = sum(int((~mask).sum()) for mask in masks.values())
        shares = {name: tensor.sparsity for name, tensor in pruned.items()}
        shares["total"] = zeros / sum(mask.numel() for mask in masks.values())
        achieved = Achieved(shares, emptied(masks))
        if rank_and_world()[0] == 0:
            write_pruned(path, self.model.state_dict(), masks, self.protocol(sparsity, achieved))
        return achieved

    def protocol(self, sparsity: float, achieved: Achieved) -> dict[str, Any]:
        """Return how the weights are made."""
        recipe = asdict(self.recipe)
        known: dict[str, Any] = {
            "model": self.backbone.name,
            "model_args": self.backbone.model_args,
            "num_classes": self.model.num_classes,
            "activation_topk": self.backbone.activation_topk and asdict(self.backbone.activation_topk),
            "weights_before": self.weights_before,
            **recipe,
            "scope": str(self.recipe.scope),
            "sparsity": sparsity,
            "achieved": achieved.zeros,
            "emptied": asdict(achieved.emptied),
            "calibration": None,
        }
        if self.recipe.ratios == "outliers":
            known["outliers"] = {"times_mean": OUTLIER, "spread": SPREAD}
        if self.images is not None:
            known["calibration"] = {
                "images": self.n_images,
                "asked": self.images.n,
                "batch_size": self.images.batch_size,
                "seed": self.images.seed,
                "fingerprint": self.images.fingerprint,
                "data": self.images.data.fingerprint("train"),
                "transform": self.images.data.protocol(),
            }
        return known

    def _calibrate(self, targets: list[Target]) -> Calibration:
        if self.images is None:
            return NO_IMAGES
        device = targets[0].weight.device
        return calibrate(self.model, targets, self.images.batches(device), gram=self.recipe.method == "sparsegpt")

    def _fill(self, weights: dict[str, Any]) -> None:
        for target in self.targets:
            if target.name in weights:
                target.layer.weight.data.copy_(weights[target.name])
