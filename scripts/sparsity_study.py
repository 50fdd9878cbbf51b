"""What the tables of sparsity share: the model and the images of a recipe, and results that are measured once."""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentParser

from impact_lightning import cli
from impact_lightning.backbones import Backbone
from impact_lightning.data.images import ImageData
from impact_lightning.data.module import ImageDataModule
from impact_lightning.data.scenes import SceneData
from impact_lightning.files import atomic_write
from impact_lightning.types import UserError

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantiles by the number of seeds
QUIET = [  # the test images alone are looked at, and at the end
    *("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--checkpoint.monitor=null"),
    *("--trainer.enable_progress_bar=false", "--trainer.devices=1"),
]


class Study:
    """A recipe with so many of its images.

    Args:
        config: The recipe, a config of `fit` for a classifier.
        root: Class folders, where the recipe reads files.
        images: Training images of an epoch.
        test_images: Test images.
    """

    def __init__(self, config: Path, root: str | None, images: int, test_images: int) -> None:
        self.config = config
        self.recipe: dict[str, Any] = yaml.safe_load(config.read_text())
        self.root = root
        self.images = images
        self.test_images = test_images
        self.is_rendered = self.recipe["data"]["class_path"].endswith(".SceneData")
        if not self.is_rendered and root is None:
            raise UserError(f"{config} reads class folders: give --root")
        if not self.is_rendered and (images % 10 or test_images % 10):
            raise UserError("--images and --test-images are divided among 10 classes")
        self._loaded: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def backbone(self, weights: Path) -> Backbone:
        """Return the model with some weights; it has as many classes as they have."""
        args = self.recipe["model"]["init_args"]["backbone"]
        classes = len(self.data(0).class_names or [])
        return Backbone(args["name"], weights=weights, model_args=args["model_args"], num_classes=classes)

    def data(self, seed: int) -> ImageDataModule:
        """Return the images without augmentation: all that are there of a file, and so many of a scene."""
        return self._data({} if self.is_rendered else {"seed": seed})

    def _data(self, changes: dict[str, Any]) -> ImageDataModule:
        args = {**self.recipe["data"]["init_args"], **self._sizes(), **changes}
        args.pop("augment", None)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments((ImageData, SceneData), "data")
        given = {"class_path": self.recipe["data"]["class_path"], "init_args": {**args, "workers": 0}}
        module: ImageDataModule = parser.instantiate(parser.parse_object({"data": given})).data
        return module

    def _sizes(self) -> dict[str, Any]:
        """Return where images come from; scenes are split anew with every size, so all that look at them share one."""
        if self.is_rendered:
            return {"n_train": self.images, "n_test": self.test_images}
        return {"root": self.root}

    def fit(self, folder: Path, seed: int, *words: str) -> None:
        """Run the recipe in a folder, or go on with it."""
        sizes = {**self._sizes()} if self.is_rendered else {**self._sizes(), "seed": seed, "limit": self.images // 10}
        given = [f"--data.{name}={value}" for name, value in sizes.items()]
        run = [f"--config={self.config}", f"--dir={folder}", "--ckpt_path=last", f"--seed_everything={seed}"]
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main(["fit", *run, *given, *QUIET, *words])

    @torch.no_grad()
    def accuracy(self, weights: Path, split: Literal["test", "val"] = "test") -> float:
        """Return top-1 on the test images, or on those that are held out for choices, in float32."""
        if split not in self._loaded:
            data = self._data({} if self.is_rendered else {"limit": self.test_images // 10})
            loader = data.test_dataloader() if split == "test" else data.val_dataloader()
            loaded = [data.on_after_batch_transfer(batch, 0) for batch in loader]
            self._loaded[split] = [(batch.images, batch.labels) for batch in loaded]
        model = self.backbone(weights).build().eval()
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in self._loaded[split])
        return right / sum(len(labels) for _, labels in self._loaded[split])


class Units:
    """Results, a file each, named after what they depend on: what is there is not measured again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, key: dict[str, Any]) -> Path:
        """Return the file of a result."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{name}-{digest}.json"

    def find(self, name: str, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return a result, if it is there."""
        path = self.path(name, key)
        found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return found

    def measure(self, name: str, key: dict[str, Any], what: Callable[[Path], dict[str, Any]]) -> None:
        """Measure what is missing, in a folder that is named after it, and tell."""
        path = self.path(name, key)
        if path.exists():
            return
        start = perf_counter()
        found = what(self.folder.parent / "fits" / path.stem)
        found["seconds"] = round(perf_counter() - start, 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps({**key, **found}, indent=1).encode())
        print(f"{name}: {found}", flush=True)


def half_width(values: list[float]) -> float:
    """Return the half-width of Student's 95 % interval of a mean; 0 of a single value."""
    n = len(values)
    return STUDENT[n] * stdev(values) / n**0.5 if n > 1 else 0.0


def spread(values: list[float]) -> str:
    """Return mean and half-width of the interval, in percent."""
    return f"{100 * mean(values):.1f}" + (f" ± {100 * half_width(values):.1f}" if len(values) > 1 else "")
