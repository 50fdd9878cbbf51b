"""Protocols: what is removed at each point of a curve, what takes its place, and what is read off.

A number means something beside its protocol alone: name, version and every setting are part of each result, and areas
of two conventions never compare.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

from impact_lightning.attribution.road import Imputed
from impact_lightning.attribution.scores import Score
from impact_lightning.attribution.substrates import Black, BlurRise, Drop, Mean, Substrate, ZeroNorm
from impact_lightning.results import Constant
from impact_lightning.types import UserError

Area = Literal["rise", "chefer", "trapezoid", "mean", "none"]
Ranks = tuple[int, int]
Removal = Substrate | Imputed | Drop


class Run(NamedTuple):
    """One curve: which ranks `[low, high)` are removed at each of its points, and for what."""

    substrate: Removal
    removed: tuple[Ranks, ...]
    changed: tuple[int, ...]  # units that have changed since the start of the curve
    ranking: Literal["relevance", "random"] = "relevance"


class CurveProtocol(ABC):
    """What an engine needs to know."""

    name: ClassVar[str]
    version: ClassVar[int]
    area: ClassVar[Area]

    @property
    @abstractmethod
    def resolution(self) -> Literal["pixels", "patches"]:
        """The units that are ranked and removed."""

    @property
    @abstractmethod
    def score(self) -> Score:
        """What is read off the logits."""

    @abstractmethod
    def runs(self, n: int) -> dict[str, Run]:
        """Return the curves of images of n units, by name."""


@dataclass(frozen=True)
class Rise(CurveProtocol):
    """Insertion and deletion of pixels (RISE, arXiv 1806.07421): from a blurred image, and to zero after normalisation.

    Args:
        chunk: Pixels of a step; as published one row of 224, and 1792 for an eighth of the work.
    """

    chunk: int = 224
    name: ClassVar[str] = "rise"
    version: ClassVar[int] = 1
    resolution: ClassVar[Literal["pixels"]] = "pixels"
    score: ClassVar[Score] = "probability"
    area: ClassVar[Area] = "rise"

    def __post_init__(self) -> None:
        """Refuse steps that do not move."""
        _check_step("chunk", self.chunk)

    def runs(self, n: int) -> dict[str, Run]:
        """Return the curves `deletion` and `insertion`."""
        counts = chunks(n, self.chunk)
        return {"deletion": most_first(ZeroNorm(), counts), "insertion": inserted(BlurRise(), counts, n)}


@dataclass(frozen=True)
class Chefer(CurveProtocol):
    """Positive and negative perturbation (arXiv 2012.09838): 0 to 90 % of the pixels become black, accuracy is read.

    As published, images were resized to 224 x 224 without a crop; here they come as the model takes them.
    """

    name: ClassVar[str] = "chefer"
    version: ClassVar[int] = 1
    resolution: ClassVar[Literal["pixels"]] = "pixels"
    score: ClassVar[Score] = "accuracy"
    area: ClassVar[Area] = "chefer"

    def runs(self, n: int) -> dict[str, Run]:
        """Return the curves `positive`, most relevant first, and `negative`."""
        counts = tuple(n * tenths // 10 for tenths in range(10))
        return {"positive": most_first(Black(), counts), "negative": least_first(Black(), counts, n)}


@dataclass(frozen=True)
class Patch(CurveProtocol):
    """Patches are removed in three orders, and inserted.

    Args:
        step: Patches of a step.
        substrate: What takes the place of removed patches.
        start: What insertion starts from; by default the same, and insertion then is `lerf` read backwards.
        score: What is read off the logits.
        seed: Seed of the random order.
    """

    step: int = 1
    substrate: Removal = field(default_factory=ZeroNorm)
    start: Removal | None = None
    score: Score = "probability"
    seed: int = 0
    name: ClassVar[str] = "patch"
    version: ClassVar[int] = 1
    resolution: ClassVar[Literal["patches"]] = "patches"
    area: ClassVar[Area] = "trapezoid"

    def __post_init__(self) -> None:
        """Refuse steps that do not move, imputation of everything, and dropped patches beside filled ones."""
        _check_step("step", self.step)
        if isinstance(self.substrate, Imputed) or isinstance(self.start, Imputed):
            raise UserError("patch removes whole images, which no neighbour can impute: use the protocol road")
        if self.start is not None and isinstance(self.substrate, Drop) != isinstance(self.start, Drop):
            raise UserError("patch drops patches in all of its curves or in none: Drop is both substrate and start")

    def runs(self, n: int) -> dict[str, Run]:
        """Return the curves `morf`, `lerf`, `random` and `insertion`."""
        counts = chunks(n, self.step)
        morf = most_first(self.substrate, counts)
        return {
            "morf": morf,
            "lerf": least_first(self.substrate, counts, n),
            "random": morf._replace(ranking="random"),
            "insertion": inserted(self.substrate if self.start is None else self.start, counts, n),
        }


@dataclass(frozen=True)
class Road(CurveProtocol):
    """Remove and debias (arXiv 2202.00449): removed pixels are imputed from their neighbours, at 10 to 90 %.

    Args:
        noise: Standard deviation of the noise on imputed pixels, after normalisation.
        seed: Its seed.
        score: What is read off the logits.
        resolution: Whether pixels or whole patches are ranked and removed.
    """

    noise: float = 0.01
    seed: int = 0
    score: Score = "accuracy"
    resolution: Literal["pixels", "patches"] = "pixels"
    name: ClassVar[str] = "road"
    version: ClassVar[int] = 1
    area: ClassVar[Area] = "mean"

    def runs(self, n: int) -> dict[str, Run]:
        """Return the curves `morf` and `lerf`."""
        counts = tuple(n * tenths // 10 for tenths in range(1, 10))
        imputed = Imputed(self.noise, self.seed)
        return {"morf": most_first(imputed, counts), "lerf": least_first(imputed, counts, n)}


@dataclass(frozen=True)
class Groups(CurveProtocol):
    """Groups of equal rank are removed alone, one at a time: what SaCo (CVPR 2024) compares with their relevance.

    Args:
        groups: Number K of groups.
        substrate: What takes the place of a group.
        score: What is read off the logits.
        resolution: Whether pixels or whole patches are ranked and removed.
    """

    groups: int = 10
    substrate: Removal = field(default_factory=Mean)
    score: Score = "probability"
    resolution: Literal["pixels", "patches"] = "pixels"
    name: ClassVar[str] = "groups"
    version: ClassVar[int] = 1
    area: ClassVar[Area] = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot be compared."""
        if self.groups < 2:
            raise UserError(f"groups.groups: there is nothing to compare in {self.groups} groups")

    def runs(self, n: int) -> dict[str, Run]:
        """Return the curve `groups`: a point for each group, the most relevant first."""
        if self.groups > n:
            raise UserError(f"groups.groups: {self.groups} groups of {n} units are too many")
        edges = [n * k // self.groups for k in range(self.groups + 1)]
        removed = tuple(pairwise(edges))
        return {"groups": Run(self.substrate, removed, tuple(high - low for low, high in removed))}


def most_first(substrate: Removal, counts: tuple[int, ...]) -> Run:
    """Remove the most relevant units: deletion, positive perturbation, MoRF."""
    return Run(substrate, tuple((0, k) for k in counts), counts)


def least_first(substrate: Removal, counts: tuple[int, ...], n: int) -> Run:
    """Remove the least relevant of n units: negative perturbation, LeRF."""
    return Run(substrate, tuple((n - k, n) for k in counts), counts)


def inserted(substrate: Removal, counts: tuple[int, ...], n: int) -> Run:
    """Bring the most relevant of n units back."""
    return Run(substrate, tuple((k, n) for k in counts), counts)


def chunks(n: int, size: int) -> tuple[int, ...]:
    """Return 0, size, 2 size, ... and n, the last step perhaps a shorter one.

    Example:
        >>> chunks(10, 4)
        (0, 4, 8, 10)
    """
    return (*range(0, n, size), n)


def constants(protocol: CurveProtocol, curve: str, run: Run) -> dict[str, Constant]:
    """Return everything that defines a curve, as a record holds it."""
    settings: Any = protocol
    substrate: Any = run.substrate
    elsewhere = {"substrate", "start", "score", "resolution", "noise"}  # beside these, or inside the substrate
    if run.ranking != "random":
        elsewhere.add("seed")
    return {
        "name": protocol.name,
        "version": protocol.version,
        "curve": curve,
        "resolution": protocol.resolution,
        "score": protocol.score,
        "area": protocol.area,
        "substrate": {"name": type(substrate).__name__, **asdict(substrate)},
        "points": len(run.removed),
        **{key: value for key, value in asdict(settings).items() if key not in elsewhere},
    }


def _check_step(name: str, size: int) -> None:
    if size < 1:
        raise UserError(f"{name} must be 1 or more, got {size}")
