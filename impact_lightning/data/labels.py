"""The labels of a split before its images are read."""

import numpy as np
import torch
from torch import Tensor

from impact_lightning.data.module import ImageDataModule, Split
from impact_lightning.types import UserError


def labels_of(data: ImageDataModule, split: Split) -> Tensor:
    """Return the labels of a split by row, `(N,)`; a stream does not know them in advance, and is refused."""
    images = data.split(split)
    labels = getattr(images, "labels", None)
    if labels is None:
        raise UserError(f"data: labels of {type(images).__name__} are not known before they are read")
    return torch.from_numpy(np.ascontiguousarray(labels, np.int64))
