"""Sources: how the models that are compared come to be."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impact_lightning.suite.work import Work, merged, plain
from impact_lightning.types import UserError

if TYPE_CHECKING:
    Config = dict[str, Any]  # as in a configuration file
else:
    Config = dict  # of Any, the parser would fill in every default of the classes that are named in it
CLASSIFIER = "impact_lightning.backbones.classifier.LitClassifier"


def fill(options: Any, *names: str) -> None:
    """Let options that are null, or not there, be empty mappings; refuse those that are no mappings."""
    for name in names:
        value = plain(getattr(options, name))
        if not isinstance(value, dict | None):
            raise UserError(f"{name} is {value!r}: it must be a mapping of options")
        object.__setattr__(options, name, value or {})


@dataclass(frozen=True)
class Training:
    """How a classifier is trained: what a recipe of `fit` holds, without the backbone and the images.

    Args:
        model: Options of LitClassifier: `lr`, `warmup_steps`, ...
        images: Changes to the options of the images, such as `augment` or `batch_size`.
        trainer: Options of the trainer: `max_epochs`, `callbacks`, ...
        checkpoint: Options of the checkpoints; `monitor` decides which one is the best.
        keep: Which checkpoint is the model: `best` or `last`.
    """

    model: Config = field(default_factory=dict)
    images: Config = field(default_factory=dict)
    trainer: Config = field(default_factory=dict)
    checkpoint: Config = field(default_factory=lambda: {"monitor": "val/top1"})
    keep: str = "best"

    def __post_init__(self) -> None:
        """Refuse what names no model, or two."""
        fill(self, "model", "images", "trainer", "checkpoint")
        if self.keep not in ("best", "last"):
            raise UserError(f"keep is {self.keep!r}: the model is its `best` or its `last` checkpoint")
        if "backbone" in self.model:
            raise UserError("model.backbone of a training: the backbone stands once, beside `models`")


@dataclass(frozen=True)
class Shared:
    """What all units have in common.

    Args:
        data: The images: `class_path` and `init_args`.
        backbone: The architecture: `name`, `model_args`, ...
        trainer: Options of every trainer.
    """

    data: Config
    backbone: Config
    trainer: Config

    def images(self, changes: Config) -> Config:
        """Return the images with other options."""
        return {**self.data, "init_args": merged(self.data.get("init_args", {}), changes)}

    def fit(self, name: str, model: str, backbone: Config, training: Training, seed: int) -> Work:
        """Return the training of a classifier."""
        config = {
            "seed_everything": seed,
            "model": {"class_path": CLASSIFIER, "init_args": {**training.model, "backbone": backbone}},
            "data": self.images(training.images),
            "trainer": merged(self.trainer, training.trainer),
            "checkpoint": training.checkpoint,
        }
        return Work(name, "fit", config, (model,))


class Source(ABC):
    """How a model comes to be."""

    kind: str  # in words

    @property
    def origin(self) -> str | None:
        """Name of the model that it is made from."""
        return None

    @abstractmethod
    def works(self, name: str, shared: Shared, seed: int, origin: Config | None) -> tuple[list[Work], Config]:
        """Return the units that make a model, and its backbone with weights.

        Args:
            name: What the model is called.
            shared: What all units have in common.
            seed: Seed of its training.
            origin: The backbone of the model that it is made from, if it is made from one.
        """


@dataclass(frozen=True)
class Trained(Source):
    """Trained from scratch, dense or with sparse weights (a callback WeightSparse among those of the trainer).

    Args:
        training: How.
    """

    training: Training = field(default_factory=Training)

    @property
    def kind(self) -> str:  # type: ignore[override]  # known when it is made
        """How it came to be, in words."""
        return "trained with sparse weights" if "WeightSparse" in str(self.training.trainer) else "trained"

    def works(self, name: str, shared: Shared, seed: int, origin: Config | None) -> tuple[list[Work], Config]:
        """Return its training."""
        fit = shared.fit(f"{name}/fit", name, shared.backbone, self.training, seed)
        return [fit], {**_unread(shared.backbone), "weights": f"${{{fit.name}}}/checkpoints/{self.training.keep}.ckpt"}


@dataclass(frozen=True)
class Pruned(Source):
    """Pruned after training, and perhaps trained again with its zeros held.

    Args:
        of: Name of the dense model.
        sparsity: Share of the weights that become zero.
        method: `wanda`, `magnitude`, `random` or `sparsegpt`.
        options: Further options of `prune`: `scope`, `ratios`, `images`, `batch_size`, ...
        finetune: How it is trained again; not at all by default.
    """

    of: str
    sparsity: float
    method: str = "wanda"
    options: Config = field(default_factory=dict)
    finetune: Training | None = None

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        fill(self, "options")
        if not 0 < self.sparsity < 1:
            raise UserError(f"sparsity {self.sparsity} is no share of the weights: it lies between 0 and 1")

    @property
    def origin(self) -> str:
        """Name of the model that it is made from."""
        return self.of

    @property
    def kind(self) -> str:  # type: ignore[override]  # known when it is made
        """How it came to be, in words."""
        return f"pruned by {self.method}" + (", fine-tuned" if self.finetune else "")

    def works(self, name: str, shared: Shared, seed: int, origin: Config | None) -> tuple[list[Work], Config]:
        """Return its pruning, and its second training."""
        dense = origin or {}
        asked = {"method": self.method, "sparsity": self.sparsity, "seed": seed}
        config = {"backbone": dense, "data": shared.data, **asked, **self.options}
        pruning = Work(f"{name}/prune", "prune", config, (name,))
        backbone = {**_unread(dense), "weights": f"${{{pruning.name}}}/pruned.safetensors"}
        if self.finetune is None:
            return [pruning], backbone
        fit = shared.fit(f"{name}/finetune", name, backbone, self.finetune, seed)
        return [pruning, fit], {**_unread(dense), "weights": f"${{{fit.name}}}/checkpoints/{self.finetune.keep}.ckpt"}


@dataclass(frozen=True)
class Tuned(Source):
    """Trained further as it is: what fine-tuning alone does to a model, beside those that were pruned before it.

    Args:
        of: Name of the model.
        training: How.
    """

    of: str
    training: Training
    kind = "fine-tuned"

    @property
    def origin(self) -> str:
        """Name of the model that it is made from."""
        return self.of

    def works(self, name: str, shared: Shared, seed: int, origin: Config | None) -> tuple[list[Work], Config]:
        """Return its training."""
        fit = shared.fit(f"{name}/finetune", name, origin or {}, self.training, seed)
        return [fit], {**_unread(origin), "weights": f"${{{fit.name}}}/checkpoints/{self.training.keep}.ckpt"}


@dataclass(frozen=True)
class Given(Source):
    """Made elsewhere: a file of weights, or the published ones.

    Args:
        weights: The file; the published weights of the backbone by default.
        backbone: Changes to the backbone, such as `model_args`.
    """

    weights: Path | None = None
    backbone: Config = field(default_factory=dict)
    kind = "given"

    def __post_init__(self) -> None:
        """Refuse a file that is not there."""
        fill(self, "backbone")
        if self.weights is not None and not self.weights.is_file():
            raise UserError(f"weights {self.weights}: there is no such file")

    def works(self, name: str, shared: Shared, seed: int, origin: Config | None) -> tuple[list[Work], Config]:
        """Return no units: there is nothing to do."""
        where = {"pretrained": True} if self.weights is None else {"weights": str(self.weights)}
        return [], {**merged(shared.backbone, self.backbone), **where}


def _unread(backbone: Config | None) -> Config:
    """Return a backbone whose weights come from somewhere else from now on."""
    return {key: value for key, value in (backbone or {}).items() if key not in ("pretrained", "new_head", "head")}
