"""LitAttribution: which patches a model used, by many methods, and whether that can be believed; measured by `test`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from rich.table import Table

from impact_lightning.attribution.attention_maps import RawAttention, Rollout
from impact_lightning.attribution.baselines import Centre, Random
from impact_lightning.attribution.findings import ABOVE_RANDOM, BASELINE, Finding, differences, findings
from impact_lightning.attribution.grad_cam import GradCAM
from impact_lightning.attribution.gradients import GradientTimesInput, IntegratedGradients, SmoothGrad
from impact_lightning.attribution.legrad import LeGrad
from impact_lightning.attribution.masking import RISE, Occlusion
from impact_lightning.attribution.measures import version_of
from impact_lightning.attribution.method import Method
from impact_lightning.attribution.protocols import Chefer, CurveProtocol, Groups, Patch, Rise, Road
from impact_lightning.attribution.study import SENSITIVITY, Study
from impact_lightning.attribution.substrates import Pixels
from impact_lightning.attribution.tables import method_table
from impact_lightning.attribution.transformer_attribution import TransformerAttribution
from impact_lightning.backbones import Backbone, check_supported, fingerprint
from impact_lightning.backbones.image_size import check_image_size
from impact_lightning.backbones.named import NAME, check_models
from impact_lightning.data.module import ImageDataModule
from impact_lightning.measuring import Measuring
from impact_lightning.ranks import rank_and_world
from impact_lightning.results import Constant, Record
from impact_lightning.types import ImageBatch, UserError

METHODS: dict[str, Method] = {
    "transformer_attribution": TransformerAttribution(),
    "gradient_attention": TransformerAttribution(relevance="attention"),
    "raw_attention": RawAttention(),
    "rollout": Rollout(),
    "gradient_x_input": GradientTimesInput(),
    "integrated_gradients": IntegratedGradients(),
    "smooth_grad": SmoothGrad(),
    "grad_cam": GradCAM(),
    "legrad": LeGrad(),
    "rise": RISE(masks=500),
    "occlusion": Occlusion(),
    BASELINE: Random(),
    "centre": Centre(),
}
FRACTIONS = "fractions"  # stands where the name of a method stands in files
PROTOCOLS: tuple[CurveProtocol, ...] = (Patch(), Rise(), Chefer(), Road(), Groups())


class LitAttribution(Measuring):
    """Explain the test images by many methods, and measure how faithful the maps are, on one or several models.

    Run it with `test`; it trains nothing. Every method explains the same class of each image; every number stands
    beside that of random maps on the same images.

    Args:
        models: The models by name; all are compared with the first.
        n_classes: Number of classes; taken from the data.
        methods: The methods by name; by default all of them. The method `random` is always there.
        protocols: How curves are drawn; by default all of them.
        explain_label: Whether the class that is explained is the label, instead of the prediction.
        sanity_images: Images on which maps are compared with those of randomised models and of other classes.
        gallery_images: Images whose maps are kept and drawn.
        curve_images: Images whose curves are kept and drawn; areas are of all images.
        batch_size: Images of one forward of a curve.
    """

    def __init__(
        self,
        models: dict[str, Backbone],
        n_classes: int,
        methods: dict[str, Method] | None = None,
        protocols: list[CurveProtocol] | None = None,
        explain_label: bool = False,
        sanity_images: int = 16,
        gallery_images: int = 16,
        curve_images: int = 2000,
        batch_size: int = 64,
    ) -> None:
        super().__init__()
        check_models(models, n_classes)
        for name, value, least in (
            ("sanity_images", sanity_images, 0),
            ("gallery_images", gallery_images, 0),
            ("curve_images", curve_images, 0),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise UserError(f"model.{name} must be at least {least}, got {value}")
        self.names = list(models)
        self.n_classes = n_classes
        self.methods: dict[str, Method] = {**(METHODS if methods is None else methods)}
        self.methods.setdefault(BASELINE, Random())
        _check_methods(self.methods)
        self.protocols: Sequence[CurveProtocol] = PROTOCOLS if protocols is None else protocols
        names = [protocol.name for protocol in self.protocols]
        if len(set(names)) < len(names):
            raise UserError(f"model.protocols: each may be there once, got {', '.join(names)}")
        self.explain_label = explain_label
        self.sanity_images = sanity_images
        self.gallery_images = gallery_images
        self.curve_images = curve_images
        self.batch_size = batch_size
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        built = [replace(backbone, num_classes=n_classes).build() for backbone in models.values()]
        self.models = torch.nn.ModuleList(built).eval().requires_grad_(False)
        self.weights = {name: fingerprint(model) for name, model in zip(self.names, built, strict=True)}
        self.records: list[Record] = []
        self.studies: list[Study] = []
        self.found: dict[str, list[Finding]] = {}  # by model
        self.compared: dict[str, list[Finding]] = {}  # of each model but the first

    @property
    def data(self) -> ImageDataModule:
        """The images."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageDataModule):
            raise UserError(f"LitAttribution reads images with labels, not {type(data).__name__}")
        return data

    def setup(self, stage: str) -> None:
        """Refuse half precision: it moves areas by more than 1e-3, and relevance is divided by numbers close to 0."""
        super().setup(stage)
        if "16" in str(self.trainer.precision):
            raise UserError(f"trainer.precision is {self.trainer.precision}: maps and curves need single precision, 32")

    def on_test_start(self) -> None:
        """Choose the images of gallery, sanity checks and curves: the same for every model and any number of ranks."""
        data = self.data
        rows = np.random.default_rng(self.seed).permutation(len(data.split("test"))).tolist()
        pixels = Pixels(tuple(data.mean), tuple(data.std))
        self.studies = []
        for name, model in zip(self.names, self.models, strict=True):
            check_image_size(model, f"model.models.{name}", data.image_shape)
            self.studies.append(
                Study(
                    name,
                    check_supported(model),
                    self.methods,
                    self.protocols,
                    pixels,
                    explain_label=self.explain_label,
                    sanity=rows[: self.sanity_images],
                    gallery=rows[: self.gallery_images],
                    shown=rows[: self.curve_images],
                    seed=self.seed,
                    batch_size=self.batch_size,
                )
            )

    def test_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Explain a batch by every method and model."""
        if len(batch.labels):
            for study in self.studies:
                try:
                    study.look(batch)
                except UserError as error:
                    raise UserError(f"model.models.{study.name}: {error}") from error

    def on_test_epoch_end(self) -> None:
        """Bring what was found together, and turn it into records."""
        for study in self.studies:
            study.gather()
        if not self.studies[0].parts:  # on every rank: one that goes on would wait for the others
            raise UserError("none of the test images can be read; mend the data")
        notes = self.data.notes("test")  # all ranks together
        if rank_and_world()[0] != 0:
            return
        scores = {study.name: study.scores() for study in self.studies}
        first = scores[self.names[0]]
        self.found = {name: list(findings(own, self.seed)) for name, own in scores.items()}
        self.compared = {name: list(differences(scores[name], first, self.seed)) for name in self.names[1:]}
        found = {name: (self.weights[name], own) for name, own in self.found.items()}
        for name, own in self.compared.items():
            weights = f"{self.weights[name]} - {self.weights[self.names[0]]}"
            found[f"{name} - {self.names[0]}"] = (weights, own)
        self.records = list(self._records(found, notes))

    def _records(self, found: Mapping[str, tuple[str, Sequence[Finding]]], notes: tuple[str, ...]) -> Iterator[Record]:
        """Yield a record for each finding about models, or differences of models, of some weights."""
        data = self.data.fingerprint("test")
        for model, (weights, own) in found.items():
            for one in own:
                yield Record(
                    measure=one.measure,
                    version=version_of(one.measure),
                    value=one.value,
                    n=one.n,
                    seed=self.seed,
                    protocol=self.protocol(one.method, one.measure),
                    weights=weights,
                    data=data,
                    null=one.null,
                    interval=one.interval,
                    of=f"{model}/{one.method}",
                    notes=(*notes, *one.notes),
                )

    def protocol(self, method: str, measure: str) -> dict[str, Constant]:
        """Return the constants under which a number is made: those of other methods and curves have no part in it."""
        curves = {
            f"{protocol}/{curve}": own
            for (name, protocol, curve), own in self.studies[0].constants.items()
            if name == method and measure.startswith(f"{protocol}_")
        }
        methods: Any = {name: self.methods[name] for name in dict.fromkeys((method, BASELINE))}
        return {
            **self.data.protocol(),
            "split": "test",
            "explained": "label" if self.explain_label else "prediction",
            "methods": {name: {"name": type(one).__name__, **asdict(one)} for name, one in methods.items()},
            "curves": dict(curves),
            **self._checks(measure.removesuffix(ABOVE_RANDOM)),
            "randomised": "each parameter normal with its mean and deviation, zeros stay",
            "precision": str(self.trainer.precision),
        }

    def _checks(self, measure: str) -> dict[str, Constant]:
        """Return the constants of what is measured on the images of sanity checks alone."""
        if measure in SENSITIVITY:
            return {"sanity_images": self.sanity_images, "sensitivity": SENSITIVITY[measure]}
        return {"sanity_images": self.sanity_images} if measure.startswith("likeness") else {}

    def tables(self) -> list[Table]:
        """Return what a terminal shows: a row for each method, of every model."""
        return [table for name, own in self.found.items() for table in method_table(name, own)]


def _check_methods(methods: Mapping[str, Method]) -> None:
    for name in methods:
        if not NAME.fullmatch(name) or name == FRACTIONS:
            raise UserError(
                f"model.methods: {name!r} names tensors, so it may hold letters, digits and . _ + - only, "
                f"and be no {FRACTIONS!r}"
            )
    if not isinstance(methods[BASELINE], Random):
        raise UserError(f"model.methods.{BASELINE}: all methods stand beside random maps; give yours another name")
