"""Features: what is known of every latent of a dictionary, as one file that pictures and reports are made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from safetensors.torch import save
from torch import Tensor

from impact_lightning.files import atomic_write
from impact_lightning.types import UserError

FILE = "features.safetensors"
SCHEMA = "1"


class Features(NamedTuple):
    """One row for each latent; free places of top images hold nan and -1."""

    density: Tensor  # (F,) float64, share of tokens on which it fires
    value: Tensor  # (F, k) float64, its activation on its strongest images, in descending order
    image: Tensor  # (F, k) int64, those images
    token: Tensor  # (F, k) int64, the strongest token of each
    map: Tensor  # (F, k, t) float16, its activation on every kept token of each
    active: Tensor  # (m,) int64, tokens on which 0, 1, 2, … latents fire
    class_counts: Tensor  # (F, C) int64, images of each class on which it fires
    class_images: Tensor  # (C,) int64, images of each class
    purity: Tensor  # (F,) float64, share of the most frequent label among its top images; nan under 10 images
    entropy: Tensor  # (F,) float64, of the labels of its top images, in nats
    label: Tensor  # (F,) int64, the most frequent label, -1 where there is none
    same_label: Tensor  # (F,) float64, MonoSemanticity with labels in the place of embeddings
    alike: Tensor  # (F,) float64, MonoSemanticity with embeddings; all nan where there was no embedding
    neighbour: Tensor  # (F, n) int64, latents with the most similar decoder rows
    neighbour_cosine: Tensor  # (F, n) float32
    lens_class: Tensor  # (F, m) int64, classes that the logit lens shows most; m = 0 where there is no lens
    lens_logit: Tensor  # (F, m) float32


class Description(NamedTuple):
    """What the features are of."""

    name: str  # of the dictionary
    site: str
    target: str | None  # of a transcoder
    class_names: list[str]
    tokens: list[int]  # (t,) places of the kept tokens, or none where each image has its own
    n_prefix: int  # tokens that come before the patches; -1 where it is not known
    data: str  # fingerprint of the images' split
    weights: str  # fingerprint of the dictionary
    protocol: dict[str, Any]


def write_features(folder: Path, features: Features, description: Description) -> Path:
    """Write `features.safetensors` and return its path."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in features._asdict().items()}
    about = {"schema": SCHEMA, "description": json.dumps(description._asdict())}
    with atomic_write(folder / FILE) as file:
        file.write(save(tensors, about))
    return folder / FILE


def read_features(folder: Path) -> tuple[Features, Description]:
    """Return what `write_features` wrote; another or a damaged file is refused by name."""
    path = folder / FILE
    try:
        with safetensors.safe_open(path, "pt") as file:
            about: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: `test` of LitSAE writes it") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); run `test` again") from error
    if about.get("schema") != SCHEMA or tensors.keys() != set(Features._fields):
        raise UserError(f"{path} was not written by this version; run `test` again")
    try:
        return Features(**tensors), Description(**json.loads(about["description"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); run `test` again") from error
