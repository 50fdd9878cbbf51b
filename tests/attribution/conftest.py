"""Runs that the tests of several files look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from impact_lightning.attribution.gradients import IntegratedGradients, SmoothGrad
from impact_lightning.attribution.lit_attribution import METHODS
from impact_lightning.attribution.masking import RISE
from tests.attribution.runs import FEW, backbone, measured, save_model


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models `a` and `b` of four classes, and one of `two`."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, (name, n_classes) in enumerate({"a": 4, "b": 4, "two": 2}.items()):
        save_model(folder / f"{name}.safetensors", n_classes, seed=seed)
    return folder


@pytest.fixture(scope="session")
def _few_samples() -> Iterator[None]:
    """Methods that draw samples draw few."""
    few = {"rise": RISE(masks=6), "smooth_grad": SmoothGrad(samples=2), "integrated_gradients": IntegratedGradients(2)}
    with pytest.MonkeyPatch.context() as patched:
        for name, method in few.items():
            patched.setitem(METHODS, name, method)
        yield


@pytest.fixture(scope="session")
def two(weights: Path, tmp_path_factory: pytest.TempPathFactory, _few_samples: None) -> Path:
    """Return the run of two models by all methods and protocols."""
    run = tmp_path_factory.mktemp("two")
    measured(run, {name: backbone(weights / f"{name}.safetensors") for name in ("a", "b")}, *FEW)
    return run
