"""Curves: the score of a model while images are removed in the order of relevance maps, with every forward made once.

A state of an image is a range of ranks that is removed, and what for. Curves of one protocol share their states: the
insertion of k units is the removal of the others, and all curves share the image itself. States of all images fill
batches whatever step they belong to.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impact_lightning.attribution.order import Order, order, random_order
from impact_lightning.attribution.protocols import CurveProtocol, Ranks, Removal, Run, constants
from impact_lightning.attribution.road import Imputed
from impact_lightning.attribution.scores import Score, score
from impact_lightning.attribution.substrates import Drop, Pixels
from impact_lightning.attribution.token_forward import TokenForward, Tokens
from impact_lightning.backbones.sites import check_supported, unwrap
from impact_lightning.metrics.curves import Curves
from impact_lightning.types import UserError

Model = Callable[[Tensor], Tensor]
Units = tuple[int, int]
Removed = Callable[[Tensor, Tensor], Tensor]  # images (J,), states (J,) -> bool (J, h, w)


class State(NamedTuple):
    """What is removed of an image."""

    ranking: str
    substrate: Removal
    ranks: Ranks


class Fill(NamedTuple):
    """Images with everything removed."""

    images: Tensor  # (B or 1, C, h, w)
    logits: Tensor  # (B or 1, C)


class CurveEngine:
    """Draws the curves of a model.

    Args:
        model: Turns normalised images `(B, C, h, w)` into logits `(B, C)`. Of a vision transformer of timm, patches are
            exchanged after they are embedded, unless a convolutional stem mixes them.
        pixels: How its images were normalised; by default what timm keeps with the model.
        batch_size: Images of one forward.
    """

    def __init__(self, model: Model, *, pixels: Pixels | None = None, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be 1 or more, got {batch_size}")
        if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
            raise UserError("curves need a model in evaluation mode: call model.eval()")
        self.model = model
        self.batch_size = batch_size
        self.pixels = pixels
        self.from_tokens: TokenForward | None = None
        if isinstance(model, nn.Module):
            with suppress(UserError):  # what is not understood runs on pixels
                self.pixels = pixels or Pixels.of(unwrap(model))
            with suppress(UserError):
                self.from_tokens = TokenForward(check_supported(model))

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits `(B, C)` of a batch of images."""
        is_bare = self.from_tokens is not None and self.from_tokens.model is self.model
        return self.from_tokens(images) if is_bare and self.from_tokens is not None else self.model(images)

    def subject(
        self, images: Tensor, rows: Tensor, *, targets: Tensor | None = None, labels: Tensor | None = None
    ) -> "Subject":
        """Return what draws curves of some images; their own forwards are shared by all maps and protocols.

        Args:
            images: Normalised images `(B, C, h, w)`.
            rows: Their numbers in the data set `(B,)`: what is drawn at random depends on them, not on the batch.
            targets: The class whose score is followed `(B,)`; by default the model's prediction.
            labels: The classes that they show `(B,)`, for accuracy.
        """
        return Subject(self, images, rows, targets=targets, labels=labels)


class Subject:
    """Some images and what is known about them, by a model as it stands. See `CurveEngine.subject`."""

    @torch.inference_mode()
    def __init__(
        self, engine: CurveEngine, images: Tensor, rows: Tensor, *, targets: Tensor | None, labels: Tensor | None
    ) -> None:
        for name, given in {"rows": rows, "targets": targets, "labels": labels}.items():
            if given is not None and given.shape != images.shape[:1]:
                raise UserError(f"{name} must be one number for each of {len(images)} images, got {tuple(given.shape)}")
        if images.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(images.device.type):
            raise UserError("curves need single precision: in half, areas differ by more than 1e-3 (precision: 32)")
        self.engine, self.images, self.rows = engine, images, rows
        self.logits = torch.cat([engine(part) for part in images.split(engine.batch_size)])  # (B, C)
        self.predictions = self.logits.argmax(1)
        self.targets = self.predictions if targets is None else targets
        self.labels = labels
        for name, given in {"targets": targets, "labels": labels}.items():
            if (
                given is not None
                and len(given)
                and not 0 <= int(given.min()) <= int(given.max()) < self.logits.shape[1]
            ):
                raise UserError(f"{name} must be classes of 0 to {self.logits.shape[1] - 1}, got {given.tolist()}")
        self._fills: dict[Removal, Fill] = {}
        self._tokens: dict[Removal | None, Tokens] = {}
        self._random: dict[tuple[State, Score, Units, int], Tensor] = {}  # no map has a part in these

    @torch.inference_mode()
    def curves(
        self, maps: Tensor, protocol: CurveProtocol, *, names: Collection[str] = (), tie_seed: int | None = None
    ) -> dict[str, Curves]:
        """Return the curves of relevance maps, by name.

        Args:
            maps: One for each image `(B, gh, gw)`: of patches, or of as many pixels as divide the image.
            protocol: How they are drawn.
            names: Which of its curves; by default all.
            tie_seed: Seed of a random order of equal relevance; by default the earlier in the raster is first.
        """
        known = order(maps.to(self.images.device), self.units(maps, protocol.resolution), tie_seed=tie_seed)
        n = known.relevance.shape[1]
        runs = protocol.runs(n)
        unknown = [name for name in names if name not in runs]
        if unknown:
            raise UserError(f"{protocol.name} has no curve {unknown[0]!r}; it has {', '.join(runs)}")
        runs = {name: run for name, run in runs.items() if not names or name in names}
        orders = {"relevance": known}
        if any(run.ranking == "random" for run in runs.values()):
            orders["random"] = random_order(known, self.rows, seed=getattr(protocol, "seed", 0))
        values = self._values(runs.values(), orders, protocol)
        clean = self.scores(self.logits, torch.arange(len(self.images)), protocol.score)
        return {
            name: Curves(
                values=torch.stack([values[_state(run, ranks, n)] for ranks in run.removed], dim=1),
                fractions=torch.tensor(run.changed, dtype=torch.float64) / n,
                mass=_mass(orders[run.ranking], run.removed),
                clean=clean,
                ties=known.ties,
                is_constant=known.is_constant,
                rows=self.rows,
                protocol=constants(protocol, name, run) | {"tie_seed": tie_seed},
            )
            for name, run in runs.items()
        }

    def _values(self, runs: Collection[Run], orders: dict[str, Order], protocol: CurveProtocol) -> dict[State, Tensor]:
        """Return the scores of the images `(B,)` in every state of the runs, each made once."""
        in_patches = protocol.resolution == "patches"
        n = orders["relevance"].relevance.shape[1]
        values, open_ = {}, dict[Removal, list[State]]()
        every = torch.arange(len(self.images))
        units: Any = tuple(orders["relevance"].rank.shape[1:])
        drawn = (protocol.score, units, int(getattr(protocol, "seed", 0)))
        for state in dict.fromkeys(_state(run, ranks, n) for run in runs for ranks in run.removed):
            low, high = state.ranks
            if (known := self._random.get((state, *drawn))) is not None:
                values[state] = known
            elif low == high:
                values[state] = self.scores(self.logits, every, protocol.score)
            elif (low, high) == (0, n) and not isinstance(state.substrate, Imputed | Drop):
                logits = self._fill(state.substrate).logits.expand_as(self.logits)
                values[state] = self.scores(logits, every, protocol.score)
            else:
                open_.setdefault(state.substrate, []).append(state)
        for substrate, states in open_.items():
            removed = _removed(states, orders)
            sizes = [state.ranks[1] - state.ranks[0] for state in states]
            found = self.responses(removed, sizes, substrate, protocol.score, in_patches=in_patches)
            values.update(zip(states, found.unbind(1), strict=True))
        self._random |= {(state, *drawn): x for state, x in values.items() if state.ranking == "random"}
        return values

    @torch.inference_mode()
    def responses(
        self, removed: Removed, sizes: list[int], substrate: Removal, kind: Score, *, in_patches: bool
    ) -> Tensor:
        """Return the scores of all images in all states `(B, S)` float64.

        Args:
            removed: Returns what is removed of images `(J,)` in states `(J,)`: bool `(J, h, w)`.
            sizes: Units that are removed in each state.
            substrate: What for.
            kind: What is read off the logits.
            in_patches: Whether units are patches.
        """
        n_images, n_states, device = len(self.images), len(sizes), self.images.device
        jobs = torch.arange(n_images * n_states, device=device)
        parts = jobs.split(self.engine.batch_size)
        if isinstance(substrate, Drop):  # sequences of a batch are of one length
            by_state = jobs.view(n_images, n_states).T  # (S, B)
            runs = [torch.tensor(sizes).eq(size).nonzero()[:, 0] for size in dict.fromkeys(sizes)]
            parts = tuple(part for run in runs for part in by_state[run].flatten().split(self.engine.batch_size))
        found = torch.empty(n_images * n_states, dtype=torch.float64, device=device)
        for part in parts:
            images, states = part // n_states, part % n_states
            logits = self._logits(images, removed(images, states), substrate, in_patches)
            found[part] = self.scores(logits, images, kind)
        return found.view(n_images, n_states)

    def _logits(self, images: Tensor, removed: Tensor, substrate: Removal, in_patches: bool) -> Tensor:
        """Return the logits `(J, C)` of images `(J,)` without what is removed of them `(J, h, w)`."""
        engine, from_tokens = self.engine, self.engine.from_tokens
        if isinstance(substrate, Drop):
            if from_tokens is None or not in_patches:
                raise UserError("only patches that a vision transformer of timm embeds one by one can be dropped")
            if not from_tokens.reads_prefix and bool(removed.flatten(1).all(1).any()):
                raise UserError("nothing is left to pool of an image whose patches are all dropped")
            return from_tokens.logits(self._embedded(None).without(images, removed.flatten(1)))
        if isinstance(substrate, Imputed):
            pixels = _upsampled(removed, self.images)
            return engine(substrate(self.images[images], pixels, self.rows.to(images.device)[images]))
        if in_patches and from_tokens is not None:
            other_tokens = self._embedded(substrate)
            return from_tokens.logits(self._embedded(None).mixed(other_tokens, images, removed.flatten(1)))
        fill = self._fill(substrate)
        other = fill.images if len(fill.images) == 1 else fill.images[images]
        return engine(torch.where(_upsampled(removed, self.images)[:, None], other, self.images[images]))

    def _fill(self, substrate: Removal) -> Fill:
        """Return the images with everything removed."""
        assert not isinstance(substrate, Imputed | Drop)
        if substrate not in self._fills:
            images = substrate(self.images, self.engine.pixels, self.rows)
            logits = torch.cat([self.engine(part) for part in images.split(self.engine.batch_size)])
            self._fills[substrate] = Fill(images, logits)
        return self._fills[substrate]

    def _embedded(self, substrate: Removal | None) -> Tokens:
        """Return the tokens of the images, or of what takes their place."""
        assert self.engine.from_tokens is not None
        if substrate not in self._tokens:
            images = self.images if substrate is None else self._fill(substrate).images
            parts = [self.engine.from_tokens.tokens(part) for part in images.split(self.engine.batch_size)]
            residual, qkv = zip(*parts, strict=True)
            self._tokens[substrate] = Tokens(torch.cat(residual), None if qkv[0] is None else torch.cat(qkv))
        return self._tokens[substrate]

    def scores(self, logits: Tensor, images: Tensor, kind: Score) -> Tensor:
        """Return what is read off the logits `(J, C)` of images `(J,)`, float64 `(J,)`."""
        targets = {"accuracy": self.labels, "agreement": self.predictions}.get(kind, self.targets)
        if targets is None:
            raise UserError("accuracy needs `labels`: the classes that the images show")
        return score(logits, kind, targets[images])

    def units(self, maps: Tensor, resolution: str) -> Units:
        """Return the rows and columns of units that maps rank."""
        if len(maps) != len(self.images):
            raise UserError(f"there are {len(maps)} maps for {len(self.images)} images")
        h, w = self.images.shape[-2:]
        if resolution == "pixels":
            return h, w
        own = (int(maps.shape[-2]), int(maps.shape[-1]))
        grid = own if self.engine.from_tokens is None else self.engine.from_tokens.grid(self.images)
        if own != grid:
            raise UserError(f"maps of {own[0]} x {own[1]} do not fit the {grid[0]} x {grid[1]} patches of the model")
        if h % grid[0] or w % grid[1]:
            raise UserError(f"{grid[0]} x {grid[1]} patches do not divide images of {h} x {w} pixels")
        return grid


def _state(run: Run, ranks: Ranks, n: int) -> State:
    """Return a state under the one name that it has in all curves."""
    if ranks[0] == ranks[1]:
        return State("relevance", run.substrate, (0, 0))
    return State("relevance" if ranks == (0, n) else run.ranking, run.substrate, ranks)


def _removed(states: list[State], orders: dict[str, Order]) -> Removed:
    names = list(orders)
    rank = torch.stack([orders[name].rank for name in names]).int()  # (orders, B, h, w), half the bytes of int64
    low, high = torch.tensor([state.ranks for state in states]).to(rank).T[:, :, None, None]  # (S, 1, 1)
    which = torch.tensor([names.index(state.ranking) for state in states], device=rank.device)

    def removed(images: Tensor, at: Tensor) -> Tensor:
        own = rank[which[at], images]  # (J, h, w)
        is_removed: Tensor = (own >= low[at]) & (own < high[at])
        return is_removed

    return removed


def _mass(known: Order, removed: tuple[Ranks, ...]) -> Tensor:
    """Return the relevance of what is removed at each point, `(B, S)`."""
    below = F.pad(known.relevance.cumsum(1), (1, 0))  # (B, n + 1), of all ranks below
    low, high = torch.tensor(removed, device=below.device).T
    return below[:, high] - below[:, low]


def _upsampled(removed: Tensor, images: Tensor) -> Tensor:
    """Return which pixels are removed `(J, h, w)` from which units are `(J, gh, gw)`."""
    (h, w), (rows, columns) = images.shape[-2:], removed.shape[1:]
    if (h, w) == (rows, columns):
        return removed
    pixels: Tensor = removed.repeat_interleave(h // rows, dim=1).repeat_interleave(w // columns, dim=2)
    return pixels
