"""Batches of images that a plan names one by one."""

from collections.abc import Iterable, Iterator

from impact_lightning.data.loader import EvalLoader, RandomAccess
from impact_lightning.data.order import EvalOrder, Rows
from impact_lightning.types import ImageBatch, Key


class ImageReader(EvalLoader):
    """Reads the batches that it is asked for, on this rank alone, ahead in worker processes.

    Args:
        data: The images.
        workers: Processes that read and decode; 0 reads in this one.
    """

    def __init__(self, data: RandomAccess, *, workers: int) -> None:
        super().__init__(data, EvalOrder(len(data), 1), workers=workers)

    def read(self, batches: Iterable[Rows]) -> Iterator[ImageBatch]:
        """Yield one batch for each array of rows; damaged images are left out of it."""
        return self._load([Key(0, int(row)) for row in rows] for rows in batches)
