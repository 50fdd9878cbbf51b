"""What every DataModule of images is: named splits, loaders with a planned order, normalisation on the device."""

from abc import abstractmethod
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from impact_lightning.data.loader import EvalLoader, RandomAccess, TrainLoader
from impact_lightning.data.order import EvalOrder, TrainOrder
from impact_lightning.ranks import all_union
from impact_lightning.types import ImageBatch, UserError

Split = Literal["train", "val", "test", "predict"]


class ImageDataModule(LightningDataModule):
    """Streams `ImageBatch`es of three splits; subclasses say what a split is.

    Args:
        batch_size: Images of one training step over all ranks together.
        eval_batch_size: Images of one evaluation batch on one rank; fixed, so that results do not depend on ranks.
        workers: Processes that read and decode images, on each rank; 0 reads in the training process.
        seed: Seed of the order of the samples, of splits that are drawn, and of the augmentation.
    """

    class_names: list[str]
    mean: tuple[float, ...]  # of the pixels in [0, 1], per channel
    std: tuple[float, ...]

    def __init__(self, *, batch_size: int = 64, eval_batch_size: int = 256, workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1)):
            if value < least:
                raise UserError(f"data.{name} must be at least {least}, got {value}")
        if seed < 0:
            raise UserError(f"data.seed must not be negative, got {seed}")
        if workers < 0:
            raise UserError(f"data.workers must not be negative, got {workers}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.seed = seed
        self.loaders: dict[str, TrainLoader | EvalLoader] = {}
        self._place: dict[str, Any] = {}

    @property
    def n_classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""

    @abstractmethod
    def split(self, name: Split) -> RandomAccess:
        """Return the data set of a split, or raise `UserError` where there is none."""

    def train_order(self, data: RandomAccess) -> TrainOrder:
        """Return the order of training batches."""
        return TrainOrder(len(data), self.batch_size, self.seed)

    def eval_order(self, data: RandomAccess) -> EvalOrder:
        """Return the order of evaluation batches."""
        return EvalOrder(len(data), self.eval_batch_size)

    def train_dataloader(self) -> TrainLoader:
        """Return endless batches in a seeded order."""
        data = self.split("train")
        return self._continued(TrainLoader(data, self.train_order(data), workers=self.workers))

    def _continued(self, loader: TrainLoader) -> TrainLoader:
        """Put a fresh training loader at the place where the former one, or a checkpoint, has left off."""
        if former := self.state_dict():
            loader.load_state_dict(former)
        self.loaders["train"] = loader
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training data.

        It is part of the DataModule's state because Lightning 2.6 forgets that of a loader in two cases: when the
        loader was made before the checkpoint is read (asking for the number of steps in `configure_optimizers` does
        that), and when the checkpoint was written after the last batch of an epoch.
        """
        loader = self.loaders.get("train")
        return loader.state_dict() if isinstance(loader, TrainLoader) else self._place

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the place; the loader is made later."""
        self._place = state_dict

    def _eval_loader(self, name: Split) -> EvalLoader:
        data = self.split(name)
        loader = EvalLoader(data, self.eval_order(data), workers=self.workers)
        self.loaders[name] = loader
        return loader

    def val_dataloader(self) -> EvalLoader:
        """Return the validation split, every sample once."""
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        """Return the test split, every sample once."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """Return the split to predict, every sample once."""
        return self._eval_loader("predict")

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Normalise on the device: images travel as bytes."""
        return batch._replace(images=normalise(batch.images, self.mean, self.std))

    def sample_name(self, name: Split, index: int) -> str:
        """Return what a person calls a sample: its file, if it has one."""
        return ""

    def protocol(self) -> dict[str, Any]:
        """Return the constants under which numbers on this data are made."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def notes(self, name: Split) -> tuple[str, ...]:
        """Return what a reader of a number on this split must know; all ranks call this together."""
        loader = self.loaders.get(name)
        damaged = sorted(all_union(loader.damaged)) if loader else []
        return (f"{len(damaged)} damaged samples left out: {', '.join(damaged[:3])}",) if damaged else ()

    def fingerprint(self, name: Split) -> str:
        """Return the fingerprint of a split."""
        return self.split(name).fingerprint


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return `(bytes / 255 - mean) / std` in float32, `(B, C, h, w)`; float images are already normalised."""
    if images.is_floating_point():
        return images
    shape = (1, -1, 1, 1)
    m = torch.tensor(mean, dtype=torch.float32, device=images.device).view(shape)
    s = torch.tensor(std, dtype=torch.float32, device=images.device).view(shape)
    return images.to(torch.float32).div_(255).sub_(m).div_(s)
