"""Images of any source as training, validation and test sets."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from impact_lightning.data.arrow import ArrowTables
from impact_lightning.data.folders import Folders
from impact_lightning.data.hub import HubStreams
from impact_lightning.data.image_set import ImageSet, OnError
from impact_lightning.data.loader import RandomAccess
from impact_lightning.data.module import ImageDataModule, Split
from impact_lightning.data.order import EvalOrder, TrainOrder
from impact_lightning.data.source import Collection, Indexed, Source
from impact_lightning.data.streams import ShardEvalOrder, ShardOrder, Shards
from impact_lightning.data.subset import Rows, held_out, limited
from impact_lightning.data.tars import Tars
from impact_lightning.data.transforms import Augment, EvalTransform, Preprocess
from impact_lightning.data.webdataset import WebDatasets
from impact_lightning.ranks import rank_and_world
from impact_lightning.types import UserError

log = logging.getLogger(__name__)

EVAL = Preprocess()  # 224 pixels and the statistics of ImageNet
USUAL = {"train": ["train"], "val": ["val", "validation", "valid"], "test": ["test"]}


@dataclass(frozen=True)
class SplitNames:
    """What the splits are called in the source; a name that is given must exist.

    Args:
        train: None looks for `train`, and where nothing is split takes the root itself, `.`.
        val: None looks for `val`, `validation` and `valid`, or else holds out a part of the training images.
        test: None looks for `test`, or else takes the images for validation.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None


NAMES = SplitNames()


class ImageData(ImageDataModule):
    """Images with one label each, from class folders, tar files, or Hugging Face data sets.

    Args:
        root: Directory, file, or for `hfds` and `hfids` also the name of a data set on the Hub.
        source: `folder`, `tar` (indexed) and `hfds` (Arrow tables) are read in any order; `wds` (WebDataset shards) and
            `hfids` (Hugging Face streaming) from front to back. `docs/data.md` says what each guarantees.
        splits: Names of the splits.
        val_fraction: Share of each class that is held out for validation where there is no such split.
        limit: Images of each class in each split, drawn without regard to the seed; none takes them all.
        preprocess: How images become pixels at evaluation.
        augment: How training images are varied; none prepares them as for evaluation.
        on_error: Whether an image that cannot be read ends the run, or is left out, counted and named.
        batch_size: Images of one training step over all ranks together.
        eval_batch_size: Images of one evaluation batch on one rank.
        workers: Processes that read and decode images, on each rank; 0 reads in the training process.
        seed: Seed of the order of the samples, of the part held out, and of the augmentation.
    """

    def __init__(
        self,
        root: str,
        source: Literal["folder", "tar", "hfds", "wds", "hfids"] = "folder",
        splits: SplitNames = NAMES,
        val_fraction: float = 0.1,
        limit: int | None = None,
        preprocess: Preprocess = EVAL,
        augment: Augment | None = None,
        on_error: OnError = "fail",
        batch_size: int = 64,
        eval_batch_size: int = 256,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, seed=seed)
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
        if limit is not None and limit < 1:
            raise UserError(f"data.limit must be at least 1, got {limit}")
        self.root = root
        self.val_fraction = val_fraction
        self.limit = limit
        self.augment = augment
        self.on_error: OnError = on_error
        self.preprocess = preprocess
        self.mean, self.std = preprocess.resolved["mean"], preprocess.resolved["std"]
        kinds: dict[str, Callable[[str], Collection]] = {
            "folder": Folders,
            "tar": Tars,
            "hfds": ArrowTables,
            "wds": WebDatasets,
            "hfids": HubStreams,
        }
        self.collection: Collection = kinds[source](root)
        self.names = self._find(splits)
        self._sources: dict[str, Source] = {}
        self._splits: dict[str, ImageSet] = {}
        first = next(name for name in self.names.values() if name is not None)
        self._sources[first] = self.collection.open(first)
        self.class_names = self._sources[first].class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.preprocess.resolved["input_size"]
        return channels, height, width

    def split(self, name: Split) -> ImageSet:
        """Return the images of a split: predicting takes the test split, and testing that for validation if need be."""
        part = "test" if name == "predict" else name
        if part == "test" and self.names["test"] is None:
            part = "val"
        if part not in self._splits:
            self._splits[part] = self._make(part)
        return self._splits[part]

    def train_order(self, data: RandomAccess) -> TrainOrder:
        """Return the order of training batches."""
        assert isinstance(data, ImageSet)
        if not isinstance(data.source, Shards):
            return super().train_order(data)
        order = ShardOrder(
            rows=len(data),
            batch=self.batch_size,
            seed=self.seed,
            lengths=data.source.lengths,
            ranks=rank_and_world()[1],
            workers=max(self.workers, 1),
        )
        log.info("%d of %d samples are left out of an epoch", len(data) - len(order) * order.batch, len(data))
        return order

    def eval_order(self, data: RandomAccess) -> EvalOrder:
        """Return the order of evaluation batches."""
        assert isinstance(data, ImageSet)
        if not isinstance(data.source, Shards):
            return super().eval_order(data)
        return ShardEvalOrder(len(data), self.eval_batch_size, lanes=rank_and_world()[1] * max(self.workers, 1))

    def sample_name(self, name: Split, index: int) -> str:
        """Return the file of an image, or its place in one."""
        return self.split(name).name(index)

    def protocol(self) -> dict[str, Any]:
        """Return the constants under which numbers on this data are made."""
        return {**self.preprocess.resolved, **super().protocol(), "limit": self.limit}

    def _find(self, splits: SplitNames) -> dict[str, str | None]:
        names: dict[str, str | None] = {}
        for part, usual in USUAL.items():
            given = getattr(splits, part)
            if given is not None and not self.collection.has(given):
                raise UserError(f"data.splits.{part}: {self.root} has no split {given}")
            names[part] = given or next((name for name in usual if self.collection.has(name)), None)
        if not any(names.values()):
            if not self.collection.has("."):
                raise UserError(f"data.root {self.root} has none of the usual splits; give their names in data.splits")
            names["train"] = "."
        return names

    def _make(self, part: str) -> ImageSet:
        holds_out = self.names["val"] is None and self.names["train"] is not None
        name = self.names["train" if part == "val" and holds_out else part]
        if name is None:
            raise UserError(f"data.root {self.root} has no split for {part}; give its name in data.splits.{part}")
        source = self._open(name)
        rows = np.arange(len(source))
        if isinstance(source, Indexed):
            rows = self._chosen(part, source.labels, holds_out)
        elif self.limit is not None or (holds_out and part == "val"):
            raise UserError(
                f"data.root {self.root}: a streamed source needs its own split for validation and knows no limit; "
                "local shards have both under `source: tar`"
            )
        evaluate = EvalTransform(self.preprocess)
        varied = part == "train" and self.augment is not None
        transform = self.augment.transform(self.preprocess, self.seed) if varied and self.augment else evaluate
        return ImageSet(source, rows, transform, evaluate.size, self.on_error)

    def _chosen(self, part: str, labels: Rows, holds_out: bool) -> Rows:
        rows = np.arange(len(labels))
        if holds_out and part in ("train", "val"):
            rows = np.flatnonzero(held_out(labels, self.val_fraction, self.seed) == (part == "val"))
        if not len(rows):
            raise UserError(
                f"data.root {self.root}: no image can be held out for validation, every class has only one; "
                "give the name of a split in data.splits.val"
            )
        return rows[limited(labels[rows], self.limit)]

    def _open(self, name: str) -> Source:
        if name not in self._sources:
            source = self.collection.open(name)
            unlike = sorted(set(source.class_names) ^ set(self.class_names))
            if source.class_names != self.class_names:
                raise UserError(
                    f"data.root {self.root}: the classes of split {name} are not those of the others; "
                    f"only one of them has {unlike[:5] or 'this order'}"
                )
            self._sources[name] = source
        return self._sources[name]
