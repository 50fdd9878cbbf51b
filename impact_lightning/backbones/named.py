"""Models by name, as they are compared with each other: each has trained weights, and knows the classes of the data."""

import re
from collections.abc import Mapping

import timm

from impact_lightning.types import UserError

from .backbone import Backbone

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)  # of files too


def check_models(models: Mapping[str, Backbone], n_classes: int) -> None:
    """Refuse models that cannot be compared on data of so many classes."""
    if not models:
        raise UserError("model.models is empty: name at least one model, such as dense: {name: ..., weights: ...}")
    for name, backbone in models.items():
        _check(name, backbone, n_classes)


def _check(name: str, backbone: Backbone, n_classes: int) -> None:
    if not NAME.fullmatch(name):
        raise UserError(f"model.models: {name!r} names files, so it may hold letters, digits and . _ + - only")
    if not backbone.pretrained and backbone.weights is None:
        raise UserError(f"model.models.{name} would have random weights: set its `weights`, or `pretrained: true`")
    if backbone.new_head and backbone.head is None:
        raise UserError(f"model.models.{name}.new_head would give it a random head: what it knows of classes is lost")
    if backbone.num_classes not in (None, n_classes):
        raise UserError(f"model.models.{name} has num_classes {backbone.num_classes}, the data has {n_classes} classes")
    if backbone.pretrained and backbone.head is None and (own := _published_classes(backbone.name)) != n_classes:
        raise UserError(
            f"model.models.{name}: the pretrained {backbone.name} knows {own} classes and the data has {n_classes}; "
            "fine-tune it on them first, and give those weights"
        )


def _published_classes(name: str) -> int:
    """Return how many classes the published weights of a timm model tell apart."""
    config = timm.get_pretrained_cfg(name)
    return 0 if config is None else int(config.num_classes)
