"""The nouns of this package: a batch of activations, and what is known of a site in advance."""

from typing import NamedTuple

from torch import Tensor


class ActivationBatch(NamedTuple):
    """Rows of activations, one for each token, and where each row comes from."""

    activations: dict[str, Tensor]  # site -> (B, D_site), float32 inside a LightningModule
    image: Tensor  # (B,) int64, row of the image in its data set
    token: Tensor  # (B,) int64, place of the token in the sequence
    label: Tensor  # (B,) int64, of the image
    pixels: Tensor | None = None  # (n, 3, h, w) the n images that these are all rows of; evaluation of live data only


class SiteStatistics(NamedTuple):
    """Estimates over a fixed sample, before any training; `√D / norm` is the scale that gives rows the norm √D."""

    mean: Tensor  # (D,) float32, μ
    norm: float  # E‖x - μ‖


def site_statistics(rows: Tensor) -> SiteStatistics:
    """Return μ and E‖x - μ‖ of rows `(N, D)`, summed in float64."""
    rows = rows.double()
    mean = rows.mean(0)
    return SiteStatistics(mean.float(), float((rows - mean).norm(dim=1).mean()))
