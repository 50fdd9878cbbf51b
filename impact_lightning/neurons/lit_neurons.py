"""LitNeurons: what every neuron and every head of some models responds to, measured by `test`."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

from impact_lightning.activations.image_reader import ImageReader
from impact_lightning.backbones import Backbone, check_supported, fingerprint
from impact_lightning.backbones.image_size import check_image_size
from impact_lightning.backbones.named import check_models
from impact_lightning.data.labels import labels_of
from impact_lightning.data.module import ImageDataModule
from impact_lightning.measuring import Measuring
from impact_lightning.neurons.comparison import comparison_table
from impact_lightning.neurons.findings import Finding, differences, findings
from impact_lightning.neurons.layers import Kind, find_layers
from impact_lightning.neurons.measures import Measures
from impact_lightning.neurons.null import Labels
from impact_lightning.neurons.settings import Settings
from impact_lightning.neurons.study import Look, Study
from impact_lightning.ranks import all_sum, rank_and_world
from impact_lightning.results import Constant, Record
from impact_lightning.types import ImageBatch, UserError


class LitNeurons(Measuring):
    """Measure what single neurons and heads of one or several models respond to, on the test images.

    Run it with `test`; it trains nothing. Every model reads a sample of the images for the bins of ranks, and then each
    image twice: first with gradients, to find out which units are whose, then for ranks and ablations. Of several
    models, all are compared with the first.

    Args:
        models: The models by name, such as `dense` and `wanda70`.
        n_classes: Number of classes; taken from the data.
        blocks: Numbers of the blocks whose units are measured, negative ones from the end; all by default.
        kinds: Kinds of units; both by default.
        settings: What is measured, and how finely.
    """

    def __init__(
        self,
        models: dict[str, Backbone],
        n_classes: int,
        blocks: list[int] | None = None,
        kinds: list[Kind] | None = None,
        settings: Settings = Settings(),  # noqa: B008  # never changes, and help shows its fields
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise UserError(f"selectivity needs two classes, the data has {n_classes}")
        check_models(models, n_classes)
        self.names = list(models)
        self.built = {name: f" {b.name} {b.model_args}" if b.model_args else "" for name, b in models.items()}
        self.n_classes = n_classes
        self.kinds: list[Kind] = ["neuron", "head"] if kinds is None else kinds
        self.settings = settings
        built = [replace(backbone, num_classes=n_classes).build() for backbone in models.values()]
        self.models = nn.ModuleList(built).eval().requires_grad_(False)
        self.layers = [find_layers(model, blocks, self.kinds) for model in built]
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.records: list[Record] = []
        self.measures: dict[str, Measures] = {}  # by model, after a test
        self.findings: dict[str, list[Finding]] = {}
        self.differences: dict[str, list[Finding]] = {}  # of each model but the first from that
        self.studies: list[Study] = []
        self.looks: list[Look] = []
        self._hooks = ExitStack()

    @property
    def data(self) -> ImageDataModule:
        """The images."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageDataModule):
            raise UserError(f"LitNeurons reads images with labels, not {type(data).__name__}")
        return data

    # --------------------------------------------------------------------------------------------------- passes

    def on_test_start(self) -> None:
        """Draw bins from a sample of the images, and begin to look at all of them."""
        self.records, self.measures = [], {}
        for name, model in zip(self.names, self.models, strict=True):
            check_image_size(model, name, self.data.image_shape)
        if str(self.trainer.precision).endswith("-true") and str(self.trainer.precision) != "32-true":
            raise UserError(f"trainer.precision {self.trainer.precision} casts the models: take 32-true or bf16-mixed")
        labels = Labels(labels_of(self.data, "test"), self.seed, self._n_images())
        shared = labels, self.n_classes, self.settings, self.seed
        parts = zip(self.names, self.models, self.layers, strict=True)
        self.studies = [Study(name, check_supported(model), layers, *shared) for name, model, layers in parts]
        for batch in self._sample():
            for study in self.studies:
                study.sample(batch)
        for study in self.studies:
            study.draw_bins()
        self._hooks = ExitStack()
        self.looks = [self._hooks.enter_context(study.looking()) for study in self.studies]

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Look at a batch for the first time."""
        if len(batch.labels):
            for look in self.looks:
                look(batch)

    def on_test_epoch_end(self) -> None:
        """Look at all batches again, and conclude."""
        self._hooks.close()
        for study in self.studies:
            study.choose()
        with ExitStack() as hooks:
            looks = [hooks.enter_context(study.looking_again()) for study in self.studies]
            for batch in self._again():
                for look in looks:
                    look(batch)
        self.measures = {name: study.conclude() for name, study in zip(self.names, self.studies, strict=True)}
        self.studies = []
        base = self.measures[self.names[0]]
        self.findings = {name: list(findings(found, self.seed)) for name, found in self.measures.items()}
        self.differences = {name: list(differences(self.measures[name], base, self.seed)) for name in self.names[1:]}
        self.records = list(self._records())

    def teardown(self, stage: str) -> None:
        """Leave the models as they were, also after an error."""
        self._hooks.close()

    # --------------------------------------------------------------------------------------------------- images

    def _sample(self) -> Iterator[ImageBatch]:
        """Yield this rank's part of some images that are spread evenly over those of the test."""
        read, size = self._n_images(), self.data.eval_batch_size
        n = min(self.settings.calibration, read)
        rank, world = rank_and_world()
        batches = np.array_split(np.arange(n) * read // n, ceil(n / size))[rank::world]
        reader = ImageReader(self.data.split("test"), workers=self.data.workers)
        return self._ready(reader.read(batches), len(batches), "Sampling")

    def _n_images(self) -> int:
        """Return how many images all ranks test: the first of the data. All ranks call this together."""
        batches = int(all_sum(torch.tensor(self._n_batches, device=self.device)))
        return min(len(self.data.split("test")), batches * self.data.eval_batch_size)

    def _again(self) -> Iterator[ImageBatch]:
        """Yield this rank's batches of the test again."""
        return self._ready(islice(self.data.test_dataloader(), self._n_batches), self._n_batches, "Second pass")

    @property
    def _n_batches(self) -> int:
        """How many batches this rank tests."""
        batches: Any = self.trainer.num_test_batches
        return int(sum(batches))

    def _ready(self, batches: Iterable[ImageBatch], total: int, what: str) -> Iterator[ImageBatch]:
        """Yield batches as a step gets them, but for empty ones."""
        bar: Any = self.trainer.progress_bar_callback
        shown = bar.track(batches, total, what) if hasattr(bar, "track") else batches
        with self.trainer.precision_plugin.forward_context():
            for batch in shown:
                if len(batch.labels):
                    there: ImageBatch = self.transfer_batch_to_device(batch, self.device, 0)
                    yield self.data.on_after_batch_transfer(there, 0)

    # -------------------------------------------------------------------------------------------------- records

    def _records(self) -> Iterator[Record]:
        """Yield the findings of every model, and how those after the first differ from it."""
        # the same weights make another model with another number of heads
        weights = {n: f"{fingerprint(model)}{self.built[n]}" for n, model in zip(self.names, self.models, strict=True)}
        base = self.names[0]
        for name, found in self.findings.items():
            for finding in found:
                yield self._record(finding, f"{name}/{finding.of}", weights[name])
        for name, found in self.differences.items():
            for finding in found:
                yield self._record(finding, f"{name} - {base}/{finding.of}", f"{weights[name]} - {weights[base]}")

    def _record(self, found: Finding, of: str, weights: str) -> Record:
        return Record(
            measure=found.measure,
            version=1,
            value=found.value,
            n=found.n,
            seed=self.seed,
            protocol={**self.protocol(), "layers": found.layers},
            weights=weights,
            data=self.data.fingerprint("test"),
            null=found.null,
            interval=found.interval,
            of=of,
            notes=self._notes(found),
        )

    def _notes(self, found: Finding) -> tuple[str, ...]:
        """Return what a reader of a number must know."""
        notes = self.data.notes("test")
        seen = int((next(iter(self.measures.values())).auroc.images > 0).sum())
        if seen < self.n_classes:
            notes += (f"{seen} of {self.n_classes} classes have images",)
        if found.error:
            notes += (f"bins may have put it off by {found.error:.1e}",)
        return notes

    def tables(self) -> list[Table]:
        """Return what a terminal shows: the means over all neurons and over all heads."""
        kinds = [f"{kind}s" for kind in self.kinds]
        return [comparison_table(kind, self.findings, self.differences) for kind in kinds]

    def protocol(self) -> dict[str, Constant]:
        """Return the constants under which the numbers are made."""
        return {
            **self.data.protocol(),
            "split": "test",
            "images": next(iter(self.measures.values())).images,
            "n_classes": self.n_classes,
            "kinds": self.kinds,
            **asdict(self.settings),
            "pooling_of_class_variance_and_label_entropy": "patch_max",
            "class_information_of": "x > 0 of neurons, x > median of heads",
            "ablation": "mean over images and tokens, on all tokens",
            "attribution": "one gradient step towards the mean",
            "precision": str(self.trainer.precision),
        }
