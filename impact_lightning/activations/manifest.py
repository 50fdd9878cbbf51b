"""The manifest of a set of shards: what made it, how large each part is, and how to tell that it is intact.

`docs/protocol.md` is normative; a change of the format raises `SCHEMA`.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch

from impact_lightning.activations.batch import SiteStatistics
from impact_lightning.activations.tokens import Tokens
from impact_lightning.backbones.backbone import ModelArgs
from impact_lightning.files import atomic_write
from impact_lightning.results import Constant
from impact_lightning.types import UserError

SCHEMA = 1
NAME = "manifest.json"
INDEX = "index"  # (N, 3) int32: image, token, label
Precision = Literal["32-true", "bf16-mixed"]
Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class Origin:
    """What activations are of: equal origins have equal activations, but for the rounding of other machines.

    Args:
        model: Name of the timm model.
        model_args: Changes to its architecture.
        weights: Fingerprint of its weights.
        images: Fingerprint of the images.
        transform: How images become pixels.
        sites: Width of each site.
        tokens: Which tokens are kept of each image.
        sequence: Number of tokens that the model makes of an image.
        precision: Arithmetic of the forward.
    """

    model: str
    model_args: ModelArgs
    weights: str
    images: str
    transform: dict[str, Constant]
    sites: dict[str, int]
    tokens: Tokens
    sequence: int
    precision: Precision

    def protocol(self) -> dict[str, Constant]:
        """Return the constants under which numbers on these activations are made."""
        tokens: dict[str, Constant] = asdict(self.tokens)
        return {**self.transform, "model": self.model, "tokens": tokens, "precision": self.precision}

    def digest(self) -> str:
        """Return what identifies the activations."""
        return digest(asdict(self))


@dataclass(frozen=True)
class Configuration:
    """Everything that decides the bytes of a set of shards.

    Args:
        origin: What the activations are of.
        dtype: Numbers on disk.
        n_images: Images of the split.
        images_per_shard: Shard i holds the images `[i * n, (i + 1) * n)`.
        batch_size: Images of one forward: another one may round differently.
    """

    origin: Origin
    dtype: Dtype
    n_images: int
    images_per_shard: int
    batch_size: int

    @property
    def n_shards(self) -> int:
        """Return the number of shards."""
        return -(-self.n_images // self.images_per_shard)

    def columns(self, name: str) -> tuple[int, str]:
        """Return the width of an array and the type of its numbers."""
        return (3, "int32") if name == INDEX else (self.origin.sites[name], self.dtype)

    def digest(self) -> str:
        """Return the hash that every shard carries."""
        return digest(asdict(self))


@dataclass(frozen=True)
class Stored:
    """One array on disk: bytes of the file, and the CRC-32 of each 1024 rows, in hexadecimal digits."""

    size: int
    crc32: list[str]


@dataclass(frozen=True)
class Shard:
    """One shard: its rows, and its arrays by name (`index` and the sites)."""

    rows: int
    arrays: dict[str, Stored]


@dataclass(frozen=True)
class Manifest:
    """A complete set of shards."""

    configuration: Configuration
    shards: list[Shard]
    statistics: dict[str, SiteStatistics]

    def digest(self) -> str:
        """Return what identifies the bytes of the whole set."""
        return digest([self.configuration.digest(), [asdict(shard) for shard in self.shards]])

    def write(self, root: Path) -> None:
        """Write `manifest.json`: from now on the set is complete."""
        content = {
            "schema": SCHEMA,
            "hash": self.configuration.digest(),
            "configuration": asdict(self.configuration),
            "shards": [asdict(shard) for shard in self.shards],
            "statistics": {
                site: {"mean": known.mean.tolist(), "norm": known.norm} for site, known in self.statistics.items()
            },
        }
        save(root / NAME, lambda file: file.write((canonical(content) + "\n").encode()))


def read_manifest(root: Path) -> Manifest:
    """Return the manifest of a set; one that is missing, damaged or not what it claims to be is refused."""
    path = root / NAME
    content = read_json(path, f"the activations in {root} are incomplete or elsewhere; run `extract` again to complete")
    if content.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {content.get('schema')}, this version reads {SCHEMA}; run `extract` again")
    try:
        manifest = Manifest(
            configuration=_configuration(content["configuration"]),
            shards=[read_shard(entry) for entry in content["shards"]],
            statistics={
                site: SiteStatistics(torch.tensor(known["mean"]), known["norm"])
                for site, known in content["statistics"].items()
            },
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: it does not fit the schema ({error}); run `extract` again") from None
    if manifest.configuration.digest() != content["hash"]:
        raise UserError(f"{path} was changed: its configuration does not have its hash; run `extract` again")
    if len(manifest.shards) != manifest.configuration.n_shards:
        raise UserError(
            f"{path} is incomplete: {len(manifest.shards)} of {manifest.configuration.n_shards} shards; "
            "run `extract` again"
        )
    return manifest


def read_shard(entry: dict[str, Any]) -> Shard:
    """Return the shard that a JSON object describes."""
    arrays = {name: Stored(stored["size"], list(stored["crc32"])) for name, stored in entry["arrays"].items()}
    return Shard(entry["rows"], arrays)


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """Return the object in a file; `missing` says what it means that there is none."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {missing}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); run `extract` again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no object; run `extract` again")
    return content


def save(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file, which appears when it is complete; a full disk ends in one message."""
    try:
        with atomic_write(path) as file:
            write(file)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); nothing half-written stays, what is complete is "
            "kept: free some space and run `extract` again"
        ) from error


def canonical(content: object) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, only finite numbers."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(content: object) -> str:
    """Return the SHA-256 of the canonical text, in hexadecimal digits."""
    return hashlib.sha256(canonical(content).encode()).hexdigest()


def _configuration(entry: dict[str, Any]) -> Configuration:
    origin = entry["origin"]
    return Configuration(**{**entry, "origin": Origin(**{**origin, "tokens": Tokens(**origin["tokens"])})})
