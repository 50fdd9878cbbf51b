"""A tiny backbone and tiny rooms, for every test of this folder."""

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from impact_lightning.activations import Tokens, extract
from impact_lightning.backbones import Backbone
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData

ARGS: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
SITES = ["blocks.0.mlp_neuron", "blocks.1.resid_post"]
N_IMAGES, LENGTH = 22, 5  # CLS and 2 x 2 patches


def make_backbone(folder: Path, seed: int = 0) -> Backbone:
    """Return a backbone with weights in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_file(timm.create_model("vit_tiny_patch16_224", **ARGS).state_dict(), folder / f"{seed}.safetensors")
    args = {key: value for key, value in ARGS.items() if key != "num_classes"}
    return Backbone("vit_tiny_patch16_224", weights=folder / f"{seed}.safetensors", model_args=args, num_classes=5)


def make_data() -> SceneData:
    return SceneData(Rooms(size=16), ["shape"], n_train=N_IMAGES, n_val=9, n_test=9)


def make_shards(out: Path, backbone: Backbone, **changes: Any) -> Path:
    """Extract three shards of 8, 8 and 6 images in forwards of 4."""
    settings: dict[str, Any] = {"sites": SITES, "tokens": Tokens(), "batch_size": 4, "images_per_shard": 8}
    extract(backbone=backbone, data=make_data(), out=out, device="cpu", **(settings | changes))
    return out
