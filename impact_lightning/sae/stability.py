"""Stability: whether dictionaries that differ only in their seed find the same features."""

from torch import Tensor

from impact_lightning.metrics.bootstrap import interval_of_mean
from impact_lightning.metrics.decoder_geometry import best_cosines, mmcs, pw_mcc, random_decoder
from impact_lightning.results import Null, Record
from impact_lightning.sae.findings import Recorder

MOST = 8192  # latents that are matched one to one: the time grows with the cube


def stability(record: Recorder, decoder: Tensor, other: Tensor) -> list[Record]:
    """Return how alike two decoders `(F, D)` are, beside random directions.

    `mmcs` lets several features have the same partner, `pw_mcc` matches them one to one (Hungarian algorithm).
    """
    decoder, other = decoder.detach().cpu(), other.detach().cpu()
    random = [random_decoder(*each.shape, seed=seed) for seed, each in enumerate((decoder, other))]
    how = "two decoders of independent random directions, seeds 0 and 1"
    cosines = best_cosines(decoder, other)
    records = [
        record(
            "mmcs",
            float(cosines.double().mean()),
            len(decoder),
            null=Null(float(mmcs(*random)), how),
            interval=interval_of_mean(cosines, what="latents"),
        )
    ]
    if len(decoder) <= MOST:
        records.append(
            record("pw_mcc", float(pw_mcc(decoder, other)), len(decoder), null=Null(float(pw_mcc(*random)), how))
        )
    return records
