"""A study: the units of one model on labelled images, in a sample and two passes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.backbones import capture
from impact_lightning.metrics.unit_bins import unit_edges
from impact_lightning.neurons.ablation import ablated_logits
from impact_lightning.neurons.attribution_patching import Gradients
from impact_lightning.neurons.first_pass import First, FirstPass
from impact_lightning.neurons.layers import Layer
from impact_lightning.neurons.measures import Measures
from impact_lightning.neurons.null import Labels, first_of_class, other_classes
from impact_lightning.neurons.pooling import Pooling, pool
from impact_lightning.neurons.second_pass import SecondPass
from impact_lightning.neurons.settings import Settings
from impact_lightning.ranks import rank_and_world
from impact_lightning.types import ImageBatch, UserError


class Study:
    """Reads one model: `sample` some images, then `look` at all of them, then `look_again`; at last, `conclude`.

    Between these, all ranks together, `draw_bins` and `choose` turn what was read into what is read next.

    Args:
        name: What the model is called.
        model: The model, frozen, in evaluation mode, on its device.
        layers: The layers of the units.
        labels: Labels of the images.
        n_classes: Number of classes.
        settings: What is measured.
        seed: Seed of what is drawn for nulls.
    """

    first_pass: FirstPass
    second_pass: SecondPass
    first: First
    thresholds: Tensor
    other: Tensor  # (C,) another class for each class, whose units are ablated as a null

    def __init__(
        self,
        name: str,
        model: VisionTransformer,
        layers: Sequence[Layer],
        labels: Labels,
        n_classes: int,
        settings: Settings,
        seed: int,
    ) -> None:
        self.name = name
        self.model = model
        self.layers = layers
        self.labels = labels
        self.n_classes = n_classes
        self.settings = settings
        self.seed = seed
        self.ablated = first_of_class(labels.true, settings.impact_images)  # (N,) which images have units ablated
        if settings.pooling == "cls" and not model.has_class_token:
            raise UserError(
                "model.settings.pooling is cls, and a model has no class token: take patch_mean or patch_max"
            )
        self._sample: list[Tensor] = []  # activations (B, K)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def pooled(self, activations: dict[str, Tensor], how: Pooling) -> Tensor:
        """Return one number for each image and unit, `(B, K)`."""
        n_prefix = self.model.num_prefix_tokens
        return torch.cat(
            [pool(layer.sizes(activations[layer.site]), how, n_prefix) for layer in self.layers], 1
        ).float()

    def check(self, x: Tensor, what: str) -> None:
        """Refuse numbers that are not finite."""
        if not x.isfinite().all():
            raise UserError(f"{self.name}: {what} are not finite: its weights are damaged, or precision is too low")

    @torch.no_grad()
    def sample(self, batch: ImageBatch) -> None:
        """Keep the activations of some images."""
        with capture(self.model, [layer.site for layer in self.layers], stop=False) as captured:
            self.check(self.model(batch.images), "logits")
        for site, x in captured.items():
            self.check(x, site)
        self._sample.append(self.pooled(captured, self.settings.pooling).cpu())

    def draw_bins(self) -> None:
        """Draw the bins of each unit from the sample of all ranks."""
        parts = self._sample
        if rank_and_world()[1] > 1:
            several: list[list[Tensor]] = [[] for _ in range(rank_and_world()[1])]
            dist.all_gather_object(several, parts)
            parts = [part for one in several for part in one]
        if not parts:
            raise UserError("none of the images can be read; mend the data")
        sample = torch.cat(parts)  # (n, K), images in any order
        edges = unit_edges(sample, self.settings.bins)
        self.thresholds = torch.zeros(sample.shape[1])  # a head is never silent: it fires where it is above its median
        for layer in self.layers:
            if layer.kind == "head":
                self.thresholds[layer.of_units] = sample[:, layer.of_units].median(0).values
        self._sample = []
        first = FirstPass(self.layers, self.labels, self.n_classes, edges, self.settings.k)
        self.first_pass = first.to(self.device)

    @contextmanager
    def looking(self) -> Iterator["Look"]:
        """Read all images with gradients."""
        with Gradients(self.model, [layer.site for layer in self.layers], self.layers[0].block).reading() as run:
            yield Look(self, run)

    def choose(self) -> None:
        """Choose classes for units and units for classes, by what all ranks have seen."""
        self.first = self.first_pass.compute()
        del self.first_pass  # its tables are as large as those of the next
        second = SecondPass(self.layers, self.labels, self.n_classes, self.first, self.thresholds, self.settings)
        self.second_pass = second.to(self.device)
        has_own = torch.stack([own[:, 0] >= 0 for own in second.own]).any(0)  # (C,)
        self.other = other_classes(self.n_classes, has_own.nonzero().flatten().cpu(), self.seed)
        scores = self.first.attributions.scores.float().cpu()  # they have chosen
        self.first = self.first._replace(attributions=self.first.attributions._replace(scores=scores))

    @contextmanager
    def looking_again(self) -> Iterator["SecondLook"]:
        """Read all images again, knowing what the first look has found."""
        streams = {f"blocks.{layer.block}.resid_pre" for layer in self.layers}
        with capture(self.model, [*streams, *(layer.site for layer in self.layers)], stop=False) as captured:
            yield SecondLook(self, captured)

    def conclude(self) -> Measures:
        """Return what was found; all ranks call this together."""
        first, second = self.first, self.second_pass.compute()
        found = {**second.measures, **first.measures}
        return Measures(
            layers=self.layers,
            n_classes=self.n_classes,
            by_name={name: measure.cpu() for name, measure in found.items()},
            null_units=self.second_pass.null_units.cpu(),
            preferred=first.preferred.cpu(),
            auroc=type(second.auroc)(*(part.cpu() for part in second.auroc)),
            top=type(first.top)(*(part.cpu() for part in first.top)),
            own=[own.cpu() for own in self.second_pass.own],
            scores=first.attributions.scores,
            images=int(second.auroc.images.sum()),
        )


class Look:
    """The first look at all images."""

    def __init__(self, study: Study, run: Gradients) -> None:
        self.study = study
        self.run = run

    def __call__(self, batch: ImageBatch) -> None:
        """Add a batch."""
        study = self.study
        logits, activations, gradients = self.run(batch.images, batch.labels)
        study.check(logits, "logits")
        pooled = study.pooled(activations, study.settings.pooling)
        study.first_pass.update(activations, gradients, pooled, batch.labels, batch.row)


class SecondLook:
    """The second look at all images."""

    def __init__(self, study: Study, captured: dict[str, Tensor]) -> None:
        self.study = study
        self.captured = captured

    @torch.no_grad()
    def __call__(self, batch: ImageBatch) -> None:
        """Add a batch."""
        study = self.study
        logits = study.model(batch.images)
        study.check(logits, "logits")
        read = dict(self.captured)  # ablations run blocks again
        x, peaks = study.pooled(read, study.settings.pooling), study.pooled(read, "patch_max")
        study.second_pass.update(x, peaks, batch.labels, batch.row)
        chosen = study.ablated[batch.row.cpu()].to(logits.device).nonzero().flatten()  # (b,) of the batch
        if len(chosen):
            self._ablate(logits[chosen], {site: read[site] for site in self._streams}, batch.labels[chosen], chosen)

    @property
    def _streams(self) -> set[str]:
        return {f"blocks.{layer.block}.resid_pre" for layer in self.study.layers}

    def _ablate(self, clean: Tensor, streams: dict[str, Tensor], labels: Tensor, chosen: Tensor) -> None:
        """Ablate the own units of each image's class, and as a null those of another class."""
        study, second = self.study, self.study.second_pass
        means, other = study.first.attributions.means, study.other.to(labels.device)[labels]
        with_own: list[Tensor] = []
        with_other: list[Tensor] = []
        for layer, own in zip(study.layers, second.own, strict=True):
            stream, mean = streams[f"blocks.{layer.block}.resid_pre"][chosen], means[layer.of_channels]
            for logits, units in ((with_own, own[labels]), (with_other, own[other])):
                is_nothing = (units < 0).all(1, keepdim=True)  # without units there is no impact to speak of
                logits.append(
                    ablated_logits(study.model, layer, stream, units, mean).masked_fill(is_nothing, torch.nan)
                )
        second.impact.update(clean, with_own, labels)
        second.impact_null.update(clean, with_other, labels)
