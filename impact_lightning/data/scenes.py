"""Rendered scenes with known factors and masks as training, validation and test sets."""

import hashlib
from typing import Any

import numpy as np
import torch

from impact_lightning.data.loader import Fetched
from impact_lightning.data.module import ImageDataModule, Split
from impact_lightning.data.order import Rows
from impact_lightning.data.scene_source import SceneSource
from impact_lightning.types import ImageBatch, Key, UserError


class SceneSet:
    """Some images of a scene, labelled by some of its factors."""

    def __init__(self, source: SceneSource, rows: Rows, label: list[str]) -> None:
        self.source = source
        self.rows = rows  # (N,) index into the grid
        self.label = label
        identity = f"{type(source).__name__} {source.version} {source.size} {source.grid} {label}"
        self.fingerprint = hashlib.sha256(identity.encode() + rows.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    @property
    def labels(self) -> Rows:
        """Return all labels `(N,)`."""
        return self.source.grid.label_of(self.source.grid.factors_of(self.rows), self.label)

    def __getitems__(self, keys: list[Key]) -> Fetched:
        """Render one batch."""
        index = np.array([key.row for key in keys], dtype=np.int64)
        rows = self.rows[index]
        images, masks = self.source.render(rows)
        factors = self.source.grid.factors_of(rows)
        labels = self.source.grid.label_of(factors, self.label)
        return Fetched(
            ImageBatch(
                images=torch.from_numpy(images),
                labels=torch.from_numpy(labels),
                row=torch.from_numpy(index),
                factors=torch.from_numpy(factors),
                masks=None if masks is None else torch.from_numpy(masks),
            )
        )


class SceneData(ImageDataModule):
    """Scenes from `Sprites`, `Rooms`, or the files that they are modelled on.

    The splits are disjoint: they are cut one after another from a seeded permutation of the grid. The label is a
    factor, or the product of several: `[object_hue, shape]` gives 40 classes.

    Args:
        source: The scenes.
        label: Names of the factors that make the class.
        n_train: Images to train on.
        n_val: Images to validate on.
        n_test: Images to test on.
        mean: Mean of the pixels, subtracted from all channels.
        std: Deviation of the pixels, by which they are divided.
        batch_size: Images of one training step over all ranks together.
        eval_batch_size: Images of one evaluation batch on one rank.
        workers: Processes that render, on each rank; 0 renders in the training process.
        seed: Seed of the splits and of the order of the images.
    """

    def __init__(
        self,
        source: SceneSource,
        label: list[str],
        n_train: int = 20_000,
        n_val: int = 2_000,
        n_test: int = 2_000,
        mean: float = 0.5,
        std: float = 0.25,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, seed=seed)
        sizes = {"train": n_train, "val": n_val, "test": n_test}
        if min(sizes.values()) < 1 or sum(sizes.values()) > len(source):
            raise UserError(f"data.n_train, n_val, n_test {sizes}: each at least 1, together at most {len(source)}")
        if std <= 0:
            raise UserError(f"data.std must be positive, got {std}")
        if not label or len(set(label)) < len(label):
            raise UserError(f"data.label must name at least one factor, each once, got {label}")
        self.source = source
        self.label = label
        try:
            self.class_names = source.grid.class_names(label)
        except ValueError as error:
            raise UserError(f"data.label: {error}") from None
        self.mean = (mean,) * source.channels
        self.std = (std,) * source.channels
        order = np.random.default_rng(seed).permutation(len(source))
        rows = np.split(order[: sum(sizes.values())], np.cumsum([n_train, n_val]))
        self._splits = {name: SceneSet(source, part, label) for name, part in zip(sizes, rows, strict=True)}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.source.channels, self.source.size, self.source.size

    def split(self, name: Split) -> SceneSet:
        """Return a split; `predict` reads the test images."""
        return self._splits["test" if name == "predict" else name]

    def protocol(self) -> dict[str, Any]:
        """Return the constants under which numbers on this data are made."""
        return {**super().protocol(), "scene": type(self.source).__name__, "label": list(self.label)}
