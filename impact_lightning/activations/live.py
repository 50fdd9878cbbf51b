"""Activations of a frozen backbone that runs in the training loop."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from impact_lightning.activations.batch import ActivationBatch, SiteStatistics, site_statistics
from impact_lightning.activations.frozen import FrozenBackbone, readable_split
from impact_lightning.activations.image_reader import ImageReader
from impact_lightning.activations.loader import BufferedLoader, Serve
from impact_lightning.activations.manifest import Precision
from impact_lightning.activations.module import ActivationDataModule
from impact_lightning.activations.order import BufferOrder
from impact_lightning.activations.tokens import Tokens
from impact_lightning.backbones import Backbone
from impact_lightning.data.loader import EvalLoader
from impact_lightning.data.module import ImageDataModule, Split
from impact_lightning.data.order import EvalOrder, Rows, TrainOrder
from impact_lightning.ranks import rank_and_world
from impact_lightning.types import UserError

ALL = Tokens()
SAMPLE_ROWS = 16384  # kept of the first buffer


class LiveActivations(ActivationDataModule):
    """Activations computed by a frozen backbone on the trainer's device and shuffled in a buffer.

    The backbone is no part of the LightningModule: checkpoints do not hold it. A buffer holds the tokens of
    `buffer_images` images; the ranks share the work of filling it and each gets all of it.

    Args:
        backbone: The model and its weights.
        data: The images, prepared as for evaluation; its `batch_size` is not used.
        sites: Names or globs of sites.
        tokens: Which tokens of each image are kept.
        precision: `bf16-mixed` runs the backbone under autocast.
        batch_size: Rows of one training step over all ranks together.
        image_batch_size: Images of one forward of the backbone.
        buffer_images: Images of one buffer, a multiple of `image_batch_size`.
        seed: Seed of the order of the images and of their tokens.
    """

    data: ImageDataModule
    frozen: FrozenBackbone

    def __init__(
        self,
        backbone: Backbone,
        data: ImageDataModule,
        sites: list[str],
        tokens: Tokens = ALL,
        precision: Precision = "32-true",
        batch_size: int = 4096,
        image_batch_size: int = 64,
        buffer_images: int = 1024,
        seed: int = 0,
    ) -> None:
        if image_batch_size < 1 or buffer_images < 1 or buffer_images % image_batch_size:
            raise UserError(
                f"data.buffer_images {buffer_images} must be a multiple of data.image_batch_size {image_batch_size}"
            )
        self.data = data
        self.frozen = FrozenBackbone(backbone, sites, tokens, precision)
        self.image_batch_size = image_batch_size
        self.buffer_images = buffer_images
        super().__init__(widths=self.frozen.sites, batch_size=batch_size, seed=seed)
        self._samples: dict[str, Tensor] = {}

    @property
    def per_image(self) -> int:
        """Return how many tokens are kept of each image."""
        return self.frozen.per_image

    @property
    def eval_batch_size(self) -> int:
        """Return the rows of one evaluation batch on one rank."""
        return self.image_batch_size * self.per_image

    def class_names(self, name: Split) -> list[str]:
        """Return the names of the classes of the images."""
        return self.data.class_names

    def fingerprint(self, name: Split) -> str:
        """Return what identifies the activations of a split."""
        return self.frozen.origin(self.data, name).digest()[:16]

    def protocol(self) -> dict[str, Any]:
        """Return the constants under which numbers on these activations are made."""
        return {**self.frozen.origin(self.data, "train").protocol(), "dtype": "float32"}

    def notes(self, name: Split) -> tuple[str, ...]:
        """Return what a reader of a number on this split must know; all ranks call this together."""
        return self.data.notes(name)

    def _estimate(self) -> dict[str, SiteStatistics]:
        """Return the statistics of the first buffer."""
        rows = self._train_loader().first_buffer().activations
        stride = -(-self.buffer_images * self.frozen.per_image // SAMPLE_ROWS)
        self._samples = {site: rows[site][::stride].clone() for site in self.sites}
        return {site: site_statistics(rows[site]) for site in self.sites}

    def sample(self, site: str) -> Tensor:
        """Return rows of the first buffer, evenly spaced."""
        self.statistics(site)
        return self._samples[site]

    def _train_loader(self) -> "LiveLoader":
        self.frozen.model.to(self._device())
        return LiveLoader(self)

    def _eval_loader(self, name: Split, at_most: int | None = None) -> "LiveEvalLoader":
        self.frozen.model.to(self._device())
        return LiveEvalLoader(self, name, at_most)

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device


class LiveLoader(BufferedLoader):
    """Endless training batches of a frozen backbone.

    Whole image batches are dealt to the ranks, so that an image always meets the same neighbours in a forward, and the
    filled parts are gathered: the buffer is the same to the last bit on any number of ranks.
    """

    def __init__(self, activations: LiveActivations) -> None:
        self.frozen = activations.frozen
        self.images = activations.data
        self.image_batch = activations.image_batch_size
        split = readable_split(self.images, "train")
        if activations.buffer_images > len(split):
            raise UserError(
                f"data.buffer_images {activations.buffer_images} is more than the {len(split)} training images"
            )
        self.image_order = TrainOrder(len(split), activations.buffer_images, activations.seed)
        self.reader = ImageReader(split, workers=self.images.workers)
        order = BufferOrder(
            rows=activations.buffer_images * self.frozen.per_image,
            n_buffers=len(self.image_order),
            batch=activations.batch_size,
            seed=activations.seed,
        )
        super().__init__(order, activations.fingerprint("train"))

    def plan(self) -> str:
        """Return what decides the order of the rows."""
        return f"{self.order} of {self.image_order} in forwards of {self.image_batch}"

    def first_buffer(self) -> ActivationBatch:
        """Return all rows of the first buffer of the first epoch; all ranks call this together."""
        memory = self._memory()
        next(self._filled(0, 0, memory))
        return memory

    def buffers(self, epoch: int, first: int) -> Iterator[Serve]:
        """Fill one buffer after the other, always in the same memory."""
        memory = self._memory()
        rank, world = rank_and_world()
        for buffer in self._filled(epoch, first, memory):
            served = self.order.served(epoch, buffer)[:, rank::world]
            yield partial(_serve, memory, torch.from_numpy(served.copy()).to(memory.image.device))

    def _filled(self, epoch: int, first: int, memory: ActivationBatch) -> Iterator[int]:
        """Yield the number of each buffer when it is in the memory."""
        rank, world = rank_and_world()
        n_batches = self.image_order.batch // self.image_batch
        if n_batches % world:
            raise UserError(
                f"data.buffer_images {self.image_order.batch} is {n_batches} batches of data.image_batch_size "
                f"{self.image_batch}, which {world} ranks cannot share"
            )
        own = n_batches // world
        numbers = range(first, self.order.n_buffers)
        shares = (self._image_batches(epoch, number)[rank * own : (rank + 1) * own] for number in numbers)
        batches = self.reader.read(rows for share in shares for rows in share)
        for number in numbers:
            with self.frozen.reading(self.images) as read:
                for place in range(rank * own, (rank + 1) * own):
                    n = self.image_batch * self.frozen.per_image
                    _put(memory, read(next(batches)), place * n, n)
            if world > 1:
                _gather(memory, rank, world)
            yield number

    def _image_batches(self, epoch: int, buffer: int) -> Rows:
        """Return the images of each forward of a buffer `(n_batches, image_batch)`."""
        return self.image_order.rows_at(epoch, buffer).reshape(-1, self.image_batch)

    def _memory(self) -> ActivationBatch:
        n, device = self.order.rows, self.frozen.device
        return ActivationBatch(
            {site: torch.empty(n, width, device=device) for site, width in self.frozen.sites.items()},
            *(torch.empty(n, dtype=torch.int64, device=device) for _ in range(3)),
        )


class LiveEvalLoader:
    """Every image once: all kept tokens of one image batch are one batch of rows. Or some of these batches."""

    def __init__(self, activations: LiveActivations, name: Split, at_most: int | None = None) -> None:
        self.frozen = activations.frozen
        self.images = activations.data
        split = readable_split(self.images, name)
        order = EvalOrder(len(split), activations.image_batch_size)
        order = order if at_most is None else order.thinned(at_most)
        self.loader = EvalLoader(split, order, workers=self.images.workers)
        if at_most is None:
            self.images.loaders[name] = self.loader  # it knows which images were damaged

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        return len(self.loader)

    def __iter__(self) -> Iterator[ActivationBatch]:
        """Yield this rank's batches."""
        with self.frozen.reading(self.images) as read:
            for images in self.loader:
                yield read(images)._replace(pixels=read.pixels)


def _put(memory: ActivationBatch, batch: ActivationBatch, start: int, expected: int) -> None:
    """Let the rows of the memory from `start` on be those of a batch."""
    if len(batch.image) != expected:
        raise UserError(
            "live activations need every image, and some cannot be read (the log names them): mend or remove them, or "
            "use `extract`, which leaves them out"
        )
    for into, rows in zip(_tensors(memory), _tensors(batch), strict=True):
        into[start : start + expected] = rows


def _gather(memory: ActivationBatch, rank: int, world: int) -> None:
    """Complete a memory of which this rank has filled its part; the parts lie in the order of the ranks."""
    for rows in _tensors(memory):
        dist.all_gather_into_tensor(rows, rows.chunk(world)[rank].clone())


def _serve(memory: ActivationBatch, served: Tensor, k: int) -> ActivationBatch:
    """Return a copy of the rows `served[k]`."""
    rows = served[k]
    return ActivationBatch(
        {site: memory.activations[site][rows] for site in memory.activations},
        memory.image[rows],
        memory.token[rows],
        memory.label[rows],
    )


def _tensors(batch: ActivationBatch) -> list[Tensor]:
    return [*batch.activations.values(), batch.image, batch.token, batch.label]
