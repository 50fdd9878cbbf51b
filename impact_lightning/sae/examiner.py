"""The examiner: one pass over labelled images, in which every dictionary of a fit is examined."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import combinations, groupby
from typing import Any

import torch
from torch import Tensor

from impact_lightning.activations.batch import ActivationBatch
from impact_lightning.activations.module import ActivationDataModule
from impact_lightning.backbones import fingerprint
from impact_lightning.ranks import all_union
from impact_lightning.results import Constant, Record
from impact_lightning.sae.dictionary import Dictionary
from impact_lightning.sae.embedding import Embedding
from impact_lightning.sae.examination import Examination
from impact_lightning.sae.features import Description, Features
from impact_lightning.sae.findings import findings
from impact_lightning.sae.lens import logit_lens
from impact_lightning.sae.splice import Splice
from impact_lightning.sae.stability import stability

ENTRIES_AT_A_TIME = 2**26  # codes of one dictionary that are in memory at once


class Examiner:
    """Examines several dictionaries on the same images.

    Where the images are at hand, which is where activations are live, reconstructions are spliced into the model too.

    Args:
        dictionaries: The dictionaries by name.
        data: The activations.
        embedding: Says which images look alike.
        device: Where the dictionaries are.
    """

    def __init__(
        self,
        dictionaries: Mapping[str, Dictionary],
        data: ActivationDataModule,
        embedding: Embedding | None,
        device: torch.device,
    ) -> None:
        self.data = data
        self.device = device
        self.embedding = None if embedding is None or data.data is None else embedding.to(device)
        self.n_tokens = data.per_image
        n_classes = len(data.class_names("test"))
        self.obstacle = _obstacle(data, n_classes)
        self.examinations = {
            name: Examination(dictionary, n_classes, self.n_tokens, self.embedding).to(device)
            for name, dictionary in dictionaries.items()
        }
        self.labels: set[tuple[int, int]] = set()  # of image and label
        self.tokens: list[int] = []  # places of the kept tokens, if they are the same in all images

    @torch.no_grad()
    def update(self, batch: ActivationBatch) -> None:
        """Examine every dictionary on whole images."""
        labels, tokens = batch.label[:: self.n_tokens], batch.token.view(-1, self.n_tokens)
        self.tokens = tokens[0].tolist() if len(tokens) and bool((tokens == tokens[0]).all()) else []
        self.labels |= set(zip(batch.image[:: self.n_tokens].tolist(), labels.tolist(), strict=True))
        embeddings = self._embeddings(batch)
        splice, clean = self._splice(batch)
        for examination in self.examinations.values():
            n_images = max(1, ENTRIES_AT_A_TIME // (self.n_tokens * examination.dictionary.sae.n_latents))
            for start in range(0, max(1, len(labels)), n_images):
                part = slice(start, start + n_images)
                examination.update(
                    _images(batch, part, self.n_tokens), None if embeddings is None else embeddings[part]
                )
            if splice is not None and clean is not None:
                examination.splice(splice, clean, batch)

    def _embeddings(self, batch: ActivationBatch) -> Tensor | None:
        data = self.data.data
        if self.embedding is None or data is None or batch.pixels is None or not len(batch.pixels):
            return None
        return self.embedding(batch.pixels, data.mean, data.std)

    def _splice(self, batch: ActivationBatch) -> tuple[Splice | None, Tensor | None]:
        """Return the images to splice into, and what the model predicts as it is."""
        if self.obstacle or self.data.frozen is None or batch.pixels is None or not len(batch.pixels):
            return None, None
        splice = Splice(self.data.frozen, batch.pixels, batch.token.view(-1, self.n_tokens))
        site = next(iter(self.examinations.values())).dictionary.site
        return splice, splice.logits(site, site)

    def conclude(self, seed: int) -> tuple[list[Record], dict[str, tuple[Features, Description]]]:
        """Return the records of all dictionaries, and the features of each; all ranks call this together.

        Args:
            seed: Seed of the run.
        """
        records, features, labels = [], {}, self._labels_by_image()
        notes = self.data.notes("test")
        if self.obstacle:
            notes += (f"nothing was spliced into the model: {self.obstacle}",)
        for name, examination in self.examinations.items():
            dictionary, frozen = examination.dictionary, self.data.frozen
            site, decoder = dictionary.output_site, dictionary.sae.w_dec
            lens = None if frozen is None else logit_lens(frozen.model, site, decoder)
            found = findings(examination, partial(self._record, name, dictionary, seed, notes), labels, lens)
            records += found.records
            features[name] = found.features, self._description(name, dictionary)
        for pair, one, other in _twins(self.examinations):
            records += stability(partial(self._record, pair, one, seed, ()), one.sae.w_dec, other.sae.w_dec)
        return records, features

    def _labels_by_image(self) -> Tensor:
        """Return labels by image over all ranks, -1 where an image was not seen, `(N,)`."""
        labels = all_union(self.labels)
        found = torch.full((1 + max((image for image, _ in labels), default=-1),), -1)
        for image, label in labels:
            found[image] = label
        return found.to(self.device)

    def _record(
        self,
        name: str,
        dictionary: Dictionary,
        seed: int,
        notes: tuple[str, ...],
        measure: str,
        value: float,
        n: int,
        *,
        more: Mapping[str, Constant] = {},
        **judged: Any,
    ) -> Record:
        site = {"site": dictionary.site, "target": dictionary.target, "codes": "inference"}
        return Record(
            measure=measure,
            version=1,
            value=value,
            n=n,
            seed=seed,
            protocol={**self.data.protocol(), **site, **more},
            weights=fingerprint(dictionary.sae),
            data=self.data.fingerprint("test"),
            of=name,
            notes=notes,
            **judged,
        )

    def _description(self, name: str, dictionary: Dictionary) -> Description:
        frozen = self.data.frozen
        return Description(
            name=name,
            site=dictionary.site,
            target=dictionary.target,
            class_names=self.data.class_names("test"),
            tokens=self.tokens,
            n_prefix=-1 if frozen is None else frozen.sequence.n_prefix,
            data=self.data.fingerprint("test"),
            weights=fingerprint(dictionary.sae),
            protocol=self.data.protocol(),
        )


def _obstacle(data: ActivationDataModule, n_classes: int) -> str:
    """Return why nothing can be spliced into the model, or nothing."""
    if data.frozen is None:
        return "test with LiveActivations for that"
    predicted = int(data.frozen.model.num_classes)
    return "" if predicted == n_classes else f"it predicts {predicted} classes, and the data has {n_classes}"


def _twins(examinations: Mapping[str, Examination]) -> Iterator[tuple[str, Dictionary, Dictionary]]:
    """Yield every two dictionaries that differ only in their seed, with a name for the pair."""
    for _, group in groupby(examinations, key=lambda name: name.rpartition("-s")[0]):
        for one, other in combinations(group, 2):
            pair = f"{one}~{other.rpartition('-')[2]}"
            yield pair, examinations[one].dictionary, examinations[other].dictionary


def _images(batch: ActivationBatch, part: slice, n_tokens: int) -> ActivationBatch:
    """Return the rows of some of the images of a batch."""
    rows = slice(part.start * n_tokens, part.stop * n_tokens)
    return ActivationBatch(
        {site: x[rows] for site, x in batch.activations.items()},
        batch.image[rows],
        batch.token[rows],
        batch.label[rows],
    )
