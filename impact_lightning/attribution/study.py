"""A study: the maps of one model by many methods, and every number of every image."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.curves import CurveEngine
from impact_lightning.attribution.measures import of_curves, of_maps, of_masks
from impact_lightning.attribution.method import Method, on_grid
from impact_lightning.attribution.protocols import CurveProtocol
from impact_lightning.attribution.randomisation import cascade, randomised, rank_correlation
from impact_lightning.attribution.substrates import Pixels
from impact_lightning.backbones import capture
from impact_lightning.metrics.curves import Curves
from impact_lightning.ranks import rank_and_world
from impact_lightning.results import Constant
from impact_lightning.types import ImageBatch

Key = tuple[str, str]  # method, measure
CurveKey = tuple[str, str, str]  # method, protocol, curve
RANDOMISED = "randomised_"  # before a measure: of maps of the model with every parameter drawn anew


class Scores(NamedTuple):
    """A number of each image, images in the order of the data set."""

    rows: Tensor  # (N,)
    values: Tensor  # (N,) float64


class Example(NamedTuple):
    """An image of the gallery and its maps."""

    row: int
    label: int
    target: int
    probability: float
    maps: dict[str, Tensor]  # by method, (gh, gw)


class Study:
    """Explains the images of one model.

    Args:
        name: What the model is called.
        model: The model, frozen, in evaluation mode.
        methods: The methods by name.
        protocols: How curves are drawn.
        pixels: How images were normalised.
        explain_label: Whether the class that is explained is the label, instead of the prediction.
        sanity: Rows of the images on which methods are checked against randomised models.
        gallery: Rows of the images that are shown.
        seed: Seed of random models and classes.
        batch_size: Images of one forward of a curve.
    """

    def __init__(
        self,
        name: str,
        model: VisionTransformer,
        methods: Mapping[str, Method],
        protocols: Sequence[CurveProtocol],
        pixels: Pixels,
        *,
        explain_label: bool,
        sanity: Sequence[int],
        gallery: Sequence[int],
        seed: int,
        batch_size: int,
    ) -> None:
        self.name = name
        self.model = model
        self.methods = methods
        self.protocols = protocols
        self.explain_label = explain_label
        self.sanity, self.gallery = set(sanity), set(gallery)
        self.seed = seed
        self.engine = CurveEngine(model, pixels=pixels, batch_size=batch_size)
        self.control = randomised(model, seed)
        self.parts: dict[Key, list[tuple[Tensor, Tensor]]] = {}
        self.curves: dict[CurveKey, list[tuple[Tensor, Tensor]]] = {}
        self.fractions: dict[CurveKey, Tensor] = {}
        self.constants: dict[CurveKey, dict[str, Constant]] = {}
        self.examples: list[Example] = []

    def look(self, batch: ImageBatch) -> None:
        """Explain a batch of normalised images."""
        images, rows = batch.images, batch.row
        subject = self.engine.subject(
            images, rows, targets=batch.labels if self.explain_label else None, labels=batch.labels
        )
        norms = self._norms(images)
        found: dict[str, Tensor] = {}
        for name, method in self.methods.items():
            maps = method(self.model, images, subject.targets)
            found[name] = maps
            self._add(name, of_maps(maps, norms), rows)
            self._add(name, {"constant_map": _is_constant(maps)}, rows)
            for protocol in self.protocols:
                curves = subject.curves(maps, protocol)
                self._add(name, of_curves(protocol, curves), rows)
                self._keep_curves(name, protocol, curves)
            if batch.masks is not None:
                self._add(name, of_masks(maps, batch.masks), rows)
                without = method(self.control, images, subject.targets)
                self._add(name, {RANDOMISED + key: x for key, x in of_masks(without, batch.masks).items()}, rows)
        self._check_sanity(images, rows, subject.targets, found, subject.logits.shape[1])
        self._keep(batch, subject.targets, subject.logits.softmax(1), found)

    def _add(self, method: str, scores: Mapping[str, Tensor], rows: Tensor) -> None:
        for measure, values in scores.items():
            self.parts.setdefault((method, measure), []).append((rows.cpu(), values.detach().double().cpu()))

    def _keep_curves(self, method: str, protocol: CurveProtocol, curves: Mapping[str, Curves]) -> None:
        for name, drawn in curves.items():
            key = (method, protocol.name, name)
            self.curves.setdefault(key, []).append((drawn.rows.cpu(), drawn.values.float().cpu()))
            self.fractions[key], self.constants[key] = drawn.fractions.cpu(), drawn.protocol

    @torch.no_grad()
    def _norms(self, images: Tensor) -> Tensor:
        """Return the norms of the patches' tokens at the end of the model, `(B, gh, gw)`."""
        site = f"blocks.{len(self.model.blocks) - 1}.resid_post"
        with capture(self.model, site) as captured:
            self.model(images)
        return on_grid(self.model, images, captured[site].norm(dim=2))

    def _check_sanity(
        self, images: Tensor, rows: Tensor, targets: Tensor, found: Mapping[str, Tensor], n_classes: int
    ) -> None:
        """Compare maps with those of models that have unlearnt, and of another class."""
        at = torch.tensor([row in self.sanity for row in rows.tolist()], device=images.device).nonzero().flatten()
        if not len(at):
            return
        some, own, numbers = images[at], targets[at], rows[at]
        for parts, model in cascade(self.model, self.seed):
            for name, method in self.methods.items():
                likeness = rank_correlation(found[name][at], method(model, some, own))
                self._add(name, {f"likeness_without_{parts.replace(' ', '_')}": likeness}, numbers)
        others = (own + 1 + (numbers.to(own) + self.seed) % max(1, n_classes - 1)) % n_classes
        for name, method in self.methods.items():
            likeness = rank_correlation(found[name][at], method(self.model, some, others))
            self._add(name, {"likeness_of_another_class": likeness}, numbers)

    def _keep(self, batch: ImageBatch, targets: Tensor, p: Tensor, found: Mapping[str, Tensor]) -> None:
        for i, row in enumerate(batch.row.tolist()):
            if row in self.gallery:
                maps = {name: maps[i].float().cpu() for name, maps in found.items()}
                target = int(targets[i])
                self.examples.append(Example(row, int(batch.labels[i]), target, float(p[i, target]), maps))

    def gather(self) -> None:
        """Bring what all ranks have found together, in the order of the data set."""
        world = rank_and_world()[1]
        if world > 1:
            own = (self.parts, self.curves, self.examples)
            ranks: list[tuple[dict, dict, list]] = [({}, {}, []) for _ in range(world)]  # type: ignore[type-arg]
            dist.all_gather_object(ranks, own)
            self.parts = {key: [x for part, _, _ in ranks for x in part.get(key, [])] for key in _keys(ranks, 0)}
            self.curves = {key: [x for _, part, _ in ranks for x in part.get(key, [])] for key in _keys(ranks, 1)}
            self.examples = [x for _, _, part in ranks for x in part]
        self.examples.sort(key=lambda example: example.row)

    def scores(self) -> dict[Key, Scores]:
        """Return every number of every image."""
        found = {}
        for key, parts in self.parts.items():
            rows, values = (torch.cat(column) for column in zip(*parts, strict=True))
            order = rows.argsort()
            found[key] = Scores(rows[order], values[order])
        return found

    def drawn(self) -> dict[CurveKey, Tensor]:
        """Return every curve of every image `(N, S)`, images in the order of the data set."""
        found = {}
        for key, parts in self.curves.items():
            rows, values = (torch.cat(column) for column in zip(*parts, strict=True))
            found[key] = values[rows.argsort()]
        return found


def _is_constant(maps: Tensor) -> Tensor:
    """Return which maps have no order of their own, as numbers `(B,)`."""
    flat = maps.flatten(1)
    return (flat == flat[:, :1]).all(1).double()


def _keys(ranks: Sequence[tuple], place: int) -> list:  # type: ignore[type-arg]
    return list(dict.fromkeys(key for rank in ranks for key in rank[place]))
