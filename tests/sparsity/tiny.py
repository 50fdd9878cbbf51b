"""A tiny backbone and tiny rooms, for every test of this folder."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from impact_lightning.backbones import Backbone
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.sparsity import CalibrationImages

ARGS: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
N_TRAIN, N_IMAGES, BATCH = 30, 22, 4


def make_backbone(folder: Path, *, layer_scale: bool = False, **changes: Any) -> Backbone:
    """Return a backbone with weights in a file; LayerScale multiplies rows by numbers of either sign."""
    args = ARGS | ({"init_values": 1.0} if layer_scale else {}) | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **args)
        for name, parameter in model.named_parameters():
            if "norm" in name or "gamma" in name:
                torch.nn.init.normal_(parameter, 0.0 if "gamma" in name else 1.0, 0.5)
            elif "blocks" in name and parameter.ndim == 2:  # timm starts so small that layers hardly matter
                torch.nn.init.normal_(parameter, 0.0, 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"dense{layer_scale}.safetensors"
    save_file(model.state_dict(), path)
    return Backbone("vit_tiny_patch16_224", weights=path, model_args=args, num_classes=5)


def make_data(**changes: Any) -> SceneData:
    settings: dict[str, Any] = {"n_train": N_TRAIN, "n_val": 5, "n_test": 5}
    return SceneData(Rooms(size=16), ["shape"], **(settings | changes))


def drawn_images() -> CalibrationImages:
    return CalibrationImages(make_data(), N_IMAGES, BATCH, seed=0)


def images_in_one_batch() -> Tensor:
    return torch.cat(list(drawn_images().batches(torch.device("cpu"))))
