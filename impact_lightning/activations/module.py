"""What every DataModule of activations is, whether they are computed in the loop or read from disk."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor

from impact_lightning.activations.batch import ActivationBatch, SiteStatistics
from impact_lightning.activations.frozen import FrozenBackbone
from impact_lightning.activations.loader import BufferedLoader
from impact_lightning.data.module import ImageDataModule, Split
from impact_lightning.types import UserError


class ActivationDataModule(LightningDataModule):
    """Streams `ActivationBatch`es of three splits.

    Args:
        widths: Width of each site, in the order of execution.
        batch_size: Rows of one training step over all ranks together.
        seed: Seed of the order of the rows.
    """

    data: ImageDataModule | None = None  # the images, where they are at hand
    frozen: FrozenBackbone | None = None  # the model, likewise

    def __init__(self, *, widths: dict[str, int], batch_size: int, seed: int) -> None:
        super().__init__()
        if seed < 0:
            raise UserError(f"data.seed must not be negative, got {seed}")
        self.widths = widths
        self.batch_size = batch_size
        self.seed = seed
        self._loader: BufferedLoader | None = None
        self._place: dict[str, Any] = {}
        self._statistics: dict[str, SiteStatistics] = {}

    def __str__(self) -> str:
        """Return kind and sites; Lightning's own text would read a batch from every loader."""
        return f"{type(self).__name__}({', '.join(self.sites)})"

    @property
    @abstractmethod
    def per_image(self) -> int:
        """Return how many tokens are kept of each image, t."""

    @abstractmethod
    def class_names(self, name: Split) -> list[str]:
        """Return what a person calls the labels of a split."""

    @property
    def sites(self) -> list[str]:
        """Return the sites of every batch, in the order of execution."""
        return list(self.widths)

    def width(self, site: str) -> int:
        """Return the number of channels of a site."""
        if site not in self.widths:
            raise UserError(f"data has no site {site!r}; it has {', '.join(self.widths)}")
        return self.widths[site]

    def statistics(self, site: str) -> SiteStatistics:
        """Return estimates of mean and norm of a site on the training split; all ranks call this together."""
        self.width(site)
        if not self._statistics:
            self._statistics = self._estimate()
        return self._statistics[site]

    @abstractmethod
    def _estimate(self) -> dict[str, SiteStatistics]:
        """Return the statistics of every site."""

    @abstractmethod
    def sample(self, site: str) -> Tensor:
        """Return some rows of a site of the training split, `(n, D)` float32; all ranks call this and get the same."""

    @abstractmethod
    def fingerprint(self, name: Split) -> str:
        """Return what identifies the activations of a split."""

    def notes(self, name: Split) -> tuple[str, ...]:
        """Return what a reader of a number on this split must know; all ranks call this together."""
        return ()

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return the constants under which numbers on these activations are made."""

    @abstractmethod
    def _train_loader(self) -> BufferedLoader:
        """Return a loader at the start of the first epoch."""

    @abstractmethod
    def _eval_loader(self, name: Split, at_most: int | None = None) -> Iterable[ActivationBatch]:
        """Return every row of a split once, in batches that are dealt to the ranks in turn.

        Args:
            name: The split.
            at_most: Only so many batches over all ranks together, spread evenly over the split.
        """

    def held_out(self, at_most: int) -> Iterable[ActivationBatch]:
        """Return at most so many batches of the validation split, over all ranks together, spread evenly."""
        return self._eval_loader("val", at_most)

    def train_dataloader(self) -> BufferedLoader:
        """Return endless batches in a seeded order, from the place where the former loader or a checkpoint left off."""
        loader = self._train_loader()
        if former := self.state_dict():
            loader.load_state_dict(former)
        self._loader = loader
        return loader

    def val_dataloader(self) -> Iterable[ActivationBatch]:
        """Return the validation split, every row once."""
        return self._eval_loader("val")

    def test_dataloader(self) -> Iterable[ActivationBatch]:
        """Return the test split, every row once."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> Iterable[ActivationBatch]:
        """Return the split to predict, every row once."""
        return self._eval_loader("predict")

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the training data; here and not in the loader, as `docs/pitfalls.md` explains."""
        return self._place if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the place; the loader is made later."""
        self._place = state_dict

    def on_after_batch_transfer(self, batch: ActivationBatch, dataloader_idx: int) -> ActivationBatch:
        """Widen on the device: rows travel as they are stored."""
        return batch._replace(activations={site: rows.float() for site, rows in batch.activations.items()})
