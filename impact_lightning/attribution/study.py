"""A study: the maps of one model by many methods, and every number of every image."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.curves import CurveEngine
from impact_lightning.attribution.measures import of_curves, of_maps, of_masks
from impact_lightning.attribution.method import Method, grid_size, on_grid, refuse_non_finite
from impact_lightning.attribution.protocols import CurveProtocol
from impact_lightning.attribution.randomisation import cascade, randomised, rank_correlation
from impact_lightning.attribution.scores import Score
from impact_lightning.attribution.sensitivity import drops, noisy_maps, random_squares, random_subsets
from impact_lightning.attribution.substrates import Pixels, ZeroNorm
from impact_lightning.backbones import capture
from impact_lightning.metrics.curves import Curves
from impact_lightning.metrics.infidelity import infidelity
from impact_lightning.metrics.max_sensitivity import max_sensitivity
from impact_lightning.metrics.sensitivity_n import sensitivity_n
from impact_lightning.ranks import rank_and_world
from impact_lightning.results import Constant
from impact_lightning.types import ImageBatch

Key = tuple[str, str]  # method, measure
CurveKey = tuple[str, str, str]  # method, protocol, curve
Maps = dict[str, Tensor]  # by method, (B, gh, gw)
SHARE, REMOVALS, NOISY = 0.25, 32, 4  # of the patches in a random subset; subsets, and noisy copies, of each image
RADIUS = 0.02  # of the noise
SUBSTRATE = ZeroNorm()  # what takes the place of random removals
SCORE: Score = "probability"  # what they cost
_REMOVED: dict[str, Constant] = {"removals": REMOVALS, "substrate": {"name": type(SUBSTRATE).__name__}, "score": SCORE}
SENSITIVITY: Mapping[str, dict[str, Constant]] = {  # what each of these measures is made under
    "sensitivity_n": {"share": SHARE, "correlation": "pearson", **_REMOVED},
    "infidelity": {"squares": "a quarter of the shorter side, 1 patch at least", "optimal_scale": True, **_REMOVED},
    "max_sensitivity": {"copies": NOISY, "radius": RADIUS},
}
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
        gallery: Rows of the images whose maps are kept.
        shown: Rows of the images whose curves are kept; areas and all other numbers are kept of every image.
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
        shown: Sequence[int],
        seed: int,
        batch_size: int,
    ) -> None:
        self.name = name
        self.model = model
        self.methods = methods
        self.protocols = protocols
        self.explain_label = explain_label
        self.sanity, self.gallery, self.shown = set(sanity), set(gallery), set(shown)
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
        refuse_non_finite(subject.logits, "the logits")
        found = self._maps(self.model, images, subject.targets)
        norms = self._norms(images)
        for name, maps in found.items():
            self._add(name, of_maps(maps, norms), rows)
            for protocol in self.protocols:
                curves = subject.curves(maps, protocol)
                self._add(name, of_curves(protocol, curves), rows)
                self._keep_curves(name, protocol, curves)
        self._randomise(batch, subject.targets, found)
        self._keep(batch, subject.targets, subject.logits.softmax(1), found)

    def _maps(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Maps:
        return {name: method(model, images, targets) for name, method in self.methods.items()}

    def _add(self, method: str, scores: Mapping[str, Tensor], rows: Tensor) -> None:
        for measure, values in scores.items():
            self.parts.setdefault((method, measure), []).append((rows.cpu(), values.detach().double().cpu()))

    def _keep_curves(self, method: str, protocol: CurveProtocol, curves: Mapping[str, Curves]) -> None:
        for name, drawn in curves.items():
            key = (method, protocol.name, name)
            at = _chosen(drawn.rows, self.shown)
            self.curves.setdefault(key, []).append((drawn.rows[at].cpu(), drawn.values[at].float().cpu()))
            self.fractions[key], self.constants[key] = drawn.fractions.cpu(), drawn.protocol

    @torch.no_grad()
    def _norms(self, images: Tensor) -> Tensor:
        """Return the norms of the patches' tokens at the end of the model, `(B, gh, gw)`."""
        site = f"blocks.{len(self.model.blocks) - 1}.resid_post"
        with capture(self.model, site) as captured:
            self.model(images)
        return on_grid(self.model, images, captured[site].norm(dim=2))

    def _randomise(self, batch: ImageBatch, targets: Tensor, found: Maps) -> None:
        """Explain it by the model with every parameter drawn anew: all images with masks, else those of checks."""
        at = _chosen(batch.row, self.sanity)
        if batch.masks is None:
            without = self._maps(self.control, batch.images[at], targets[at]) if len(at) else {}
        else:
            of_all = self._maps(self.control, batch.images, targets)
            for name, maps in found.items():
                self._add(name, of_masks(maps, batch.masks), batch.row)
                places = of_masks(of_all[name], batch.masks)
                self._add(name, {RANDOMISED + measure: x for measure, x in places.items()}, batch.row)
            without = {name: maps[at] for name, maps in of_all.items()}
        if len(at):
            own = {name: maps[at] for name, maps in found.items()}
            self._check_sanity(batch.images[at], batch.row[at], targets[at], own, without)
            self._check_sensitivity(batch.images[at], batch.row[at], targets[at], own)

    def _check_sanity(self, images: Tensor, rows: Tensor, targets: Tensor, found: Maps, without: Maps) -> None:
        """Compare maps with those of models that have unlearnt, and of another class."""
        for parts, model in cascade(self.model, self.seed):
            self._compare(
                f"likeness_without_{parts.replace(' ', '_')}", found, self._maps(model, images, targets), rows
            )
        self._compare("likeness_without_everything", found, without, rows)
        n = self.model.num_classes
        if n > 1:
            others = (targets + 1 + (rows + self.seed) % (n - 1)) % n
            self._compare("likeness_of_another_class", found, self._maps(self.model, images, others), rows)

    def _check_sensitivity(self, images: Tensor, rows: Tensor, targets: Tensor, found: Maps) -> None:
        """Compare relevance with what random removals cost, and maps with those of noisy images."""
        subject = self.engine.subject(images, rows, targets=targets, labels=None)
        grid = grid_size(self.model, images)
        subsets = random_subsets(rows, grid, share=SHARE, n=REMOVALS, seed=self.seed)
        squares = random_squares(rows, grid, side=max(1, min(grid) // 4), n=REMOVALS, seed=self.seed)
        for name, maps in found.items():
            in_subsets, in_squares = (
                drops(subject, maps, removed, substrate=SUBSTRATE, score=SCORE) for removed in (subsets, squares)
            )
            method = partial(self._map, name, targets)
            noisy = noisy_maps(method, images, rows, radius=RADIUS, n=NOISY, seed=self.seed)
            scores = {
                "sensitivity_n": sensitivity_n(*in_subsets, kind="pearson"),
                "infidelity": infidelity(*in_squares, optimal_scale=True),
                "max_sensitivity": max_sensitivity(maps, noisy),
            }
            self._add(name, scores, rows)

    def _map(self, name: str, targets: Tensor, images: Tensor) -> Tensor:
        return self.methods[name](self.model, images, targets)

    def _compare(self, measure: str, found: Maps, others: Maps, rows: Tensor) -> None:
        for name, maps in found.items():
            self._add(name, {measure: rank_correlation(maps, others[name])}, rows)

    def _keep(self, batch: ImageBatch, targets: Tensor, p: Tensor, found: Maps) -> None:
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
        """Return the curves that are kept `(n, S)`, images in the order of the data set."""
        found = {}
        for key, parts in self.curves.items():
            rows, values = (torch.cat(column) for column in zip(*parts, strict=True))
            found[key] = values[rows.argsort()]
        return found


def _chosen(rows: Tensor, of: AbstractSet[int]) -> Tensor:
    """Return which places of a batch hold one of some rows."""
    return torch.tensor([row in of for row in rows.tolist()], dtype=torch.bool, device=rows.device).nonzero()[:, 0]


def _keys(ranks: Sequence[tuple], place: int) -> list:  # type: ignore[type-arg]
    return list(dict.fromkeys(key for rank in ranks for key in rank[place]))
