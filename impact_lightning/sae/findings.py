"""Findings: what an examination says, as records with nulls and intervals, and as features that can be looked at."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from impact_lightning.metrics.bootstrap import interval_of_draws, interval_of_mean
from impact_lightning.metrics.decoder_geometry import max_cosine, nearest, random_decoder
from impact_lightning.metrics.label_purity import label_purity, permuted_labels
from impact_lightning.metrics.ratio import ratio
from impact_lightning.metrics.recovered import recovered
from impact_lightning.results import Constant, Interval, Null, Record
from impact_lightning.sae.examination import TOP, Examination
from impact_lightning.sae.features import Features

NEIGHBOURS, LENS = 8, 5
POOLED: dict[str, Constant] = {"pooling": "largest of the kept tokens of an image"}


class Recorder(Protocol):
    """Makes a record of a number, with everything given that does not vary."""

    def __call__(
        self,
        measure: str,
        value: float,
        n: int,
        *,
        null: Null | None = None,
        interval: Interval | None = None,
        more: Mapping[str, Constant] = {},
    ) -> Record:
        """Return the record; `more` is added to its protocol."""


class Findings(NamedTuple):
    """What is known of one dictionary after a test."""

    records: list[Record]
    features: Features


def findings(examination: Examination, record: Recorder, labels: Tensor, lens: Tensor | None) -> Findings:
    """Return what an examination says; all ranks call this together, once.

    Args:
        examination: After every batch.
        record: Makes records.
        labels: Labels by image, -1 where an image was not seen, `(N,)`.
        lens: What each latent adds to the logits, `(F, C)`, or None.
    """
    features = _features(examination, labels, lens)  # before the dictionary's own measures start anew
    records = _reconstruction(examination, record) + _recovered(examination, record)
    return Findings(records + _meaning(examination, features, record, labels), features)


def _reconstruction(examination: Examination, record: Recorder) -> list[Record]:
    values = examination.dictionary.collect()
    n = int(values.pop("n"))
    tokens, error, energy, active, cosine = (sums := examination.sums.compute().cpu())[:, :5].T  # (1 + R,) each
    variance = energy - ratio(sums[:, 5:].square().sum(1), tokens)
    fvu, left = ratio(error, variance), float(ratio(variance, energy)[0])
    draws = {
        "fvu": fvu,
        "ev": 1 - fvu,
        "nmse_origin": ratio(error, energy),
        "l0": ratio(active, tokens),
        "cosine": ratio(cosine, tokens),
    }
    nulls = {"fvu": 1.0, "ev": 0.0, "nmse_origin": left}
    how = "every row reconstructed as the mean of all"
    return [
        record(
            name,
            value,
            n,
            null=Null(nulls[name], how) if name in nulls else None,
            interval=interval_of_draws(draws[name]) if name in draws else None,
        )
        for name, value in values.items()
    ]


def _recovered(examination: Examination, record: Recorder) -> list[Record]:
    """Return what the model recovers with the reconstruction in its place; nothing where none was spliced in."""
    spliced, meaned = examination.spliced.compute().cpu(), examination.meaned.compute().cpu()  # (1 + R, 10)
    n = int(spliced[0, 0])
    if not n:
        return []
    shares, by_mean = (recovered(sums[:, 1:].view(-1, 3, 3), sums[:, 0]) for sums in (spliced, meaned))
    return [
        record(
            name,
            float(draws[0]),
            n,
            null=Null(float(by_mean[name][0]), "every kept token replaced by the mean of the site"),
            interval=interval_of_draws(draws),
            more={"ablation": "zero", "replaced": "kept tokens"},
        )
        for name, draws in shares.items()
    ]


def _meaning(examination: Examination, features: Features, record: Recorder, labels: Tensor) -> list[Record]:
    """Return what latents stand for: means over those for which it is defined."""
    decoder = examination.dictionary.sae.w_dec.detach().cpu()
    top: dict[str, Constant] = {**POOLED, "top_images": TOP}
    by_chance = label_purity(examination.maps.compute().samples, _permuted(labels), examination.n_classes)
    permuted = "labels permuted among images"
    found: list[tuple[str, Tensor, Null, dict[str, Constant]]] = [
        ("purity", features.purity, _null(by_chance.purity, permuted), top),
        ("label_entropy", features.entropy, _null(by_chance.entropy, permuted), top),
        (
            "label_monosemanticity",
            features.same_label,
            Null(float(examination.same_label.compute().null), f"{permuted}, exact expectation"),
            POOLED,
        ),
    ]
    if examination.alike is not None:
        chance = float(examination.alike.compute().null)
        null = Null(chance, "embeddings permuted among images, exact expectation")
        found.append(("monosemanticity", features.alike, null, {**POOLED, **examination.embedding}))
    random = max_cosine(random_decoder(*decoder.shape))
    found.append(
        ("decoder_max_cosine", max_cosine(decoder), _null(random, "independent random directions, seed 0"), {})
    )
    return [_of_latents(record, name, values, null, more) for name, values, null, more in found]


def _of_latents(record: Recorder, name: str, values: Tensor, null: Null, more: Mapping[str, Constant]) -> Record:
    defined = values[~values.isnan()]
    if not len(defined):
        return record(name, torch.nan, 0, null=null, more=more)
    interval = interval_of_mean(defined, what="latents")
    return record(name, float(defined.double().mean()), len(defined), null=null, interval=interval, more=more)


def _null(values: Tensor, how: str) -> Null:
    return Null(float(values.double().nanmean()), how)


def _permuted(labels: Tensor) -> Tensor:
    """Return labels in random order among the images that were seen."""
    seen = labels >= 0
    mixed = labels.clone()
    mixed[seen] = permuted_labels(labels[seen])
    return mixed


def _features(examination: Examination, labels: Tensor, lens: Tensor | None) -> Features:
    maps, counts = examination.maps.compute(), examination.classes.compute()
    decoder = examination.dictionary.sae.w_dec.detach()
    purity = label_purity(maps.samples, labels, examination.n_classes)
    same_label = examination.same_label.compute().score
    alike = torch.full_like(same_label, torch.nan)
    neighbour, cosine = nearest(decoder, min(NEIGHBOURS, len(decoder) - 1))
    best = decoder.new_empty(len(decoder), 0) if lens is None else lens
    shown = best.topk(min(LENS, best.shape[1]), dim=1)
    features = Features(
        density=examination.dictionary.density.compute().density,
        value=maps.samples.value,
        image=maps.samples.image,
        token=maps.samples.token,
        map=maps.map,
        active=examination.dictionary.l0.compute()["histogram"],
        class_counts=counts.fired,
        class_images=counts.images,
        purity=purity.purity,
        entropy=purity.entropy,
        label=purity.label,
        same_label=same_label,
        alike=alike if examination.alike is None else examination.alike.compute().score,
        neighbour=neighbour,
        neighbour_cosine=cosine,
        lens_class=shown.indices,
        lens_logit=shown.values,
    )
    return Features(*(part.cpu() for part in features))
