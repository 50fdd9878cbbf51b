"""Rows of unit length: the decoder's directions."""

import torch
from torch import Tensor

from impact_lightning.sae.sparse import row_dots

CHUNK = 1024  # rows that are multiplied and changed while they are in cache


def project(gradient: Tensor, rows: Tensor) -> None:
    """Remove from each row of `gradient` its part along the unit row of `rows`, in place: `g −= ⟨g, d⟩ d`."""
    each = torch.arange(min(CHUNK, len(rows)), device=rows.device)
    for part, along in zip(gradient.split(CHUNK), rows.split(CHUNK), strict=True):
        ids = each[: len(part)]
        part.addcmul_(along, row_dots(part, ids, along, ids)[:, None], value=-1)


def renormalise(rows: Tensor) -> None:
    """Give every row unit length, in place; a row of zeros stays."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows.div_(torch.where(length > 0, length, 1))
