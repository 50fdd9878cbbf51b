"""Weights that the runs of these tests share."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from impact_lightning.backbones import Backbone
from tests.circuits.runs import DEEP, SHAPE


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models of four classes, `a` and `b` alike, `deep` of two blocks, and one of two classes."""
    folder = tmp_path_factory.mktemp("weights")
    kinds = {"a": (SHAPE, 4), "b": (SHAPE, 4), "two": (SHAPE, 2), "deep": (DEEP, 4)}
    for seed, (name, (shape, n_classes)) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        model = Backbone("vit_tiny_patch16_224", model_args={**shape}, num_classes=n_classes).build()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return folder
