"""Models are compared by name: each has trained weights, and knows the classes of the data."""

from pathlib import Path

import pytest

from impact_lightning.backbones import Backbone
from impact_lightning.backbones.named import check_models
from impact_lightning.types import UserError

NAME, WEIGHTS = "vit_tiny_patch16_224", Path("some.safetensors")
FINE = Backbone(NAME, weights=WEIGHTS)


@pytest.mark.parametrize("name", ["a", "dense.2", "sparse-0.1", "A_b+c", "8x"])
def test_names_of_files_are_taken(name: str) -> None:
    check_models({name: FINE, "other": Backbone(NAME, weights=WEIGHTS, num_classes=4)}, 4)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", ".a", "-a", "a\n", "模型", "é"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.models: .* names files"):
        check_models({"first": FINE, name: FINE}, 4)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (Backbone(NAME), r"model\.models\.odd would have random weights"),
        (Backbone(NAME, weights=WEIGHTS, new_head=True), r"model\.models\.odd\.new_head would give it a random head"),
        (Backbone(NAME, weights=WEIGHTS, num_classes=5), r"model\.models\.odd has num_classes 5, the data has 4"),
        (Backbone(NAME, pretrained=True), r"model\.models\.odd: .* knows 1000 classes and the data has 4"),
        (Backbone("vit_none", pretrained=True), r"model\.models\.odd: .* knows 0 classes"),
    ],
)
def test_a_model_that_cannot_be_compared_is_named(backbone: Backbone, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_models({"fine": FINE, "odd": backbone}, 4)


def test_heads_of_ones_own_make_pretrained_models_comparable() -> None:
    head = Path("probe.ckpt")
    check_models({"a": Backbone(NAME, pretrained=True, head=head), "b": Backbone(NAME, pretrained=True)}, 1000)
    check_models({"a": Backbone(NAME, pretrained=True, head=head)}, 4)
    check_models({"a": Backbone(NAME, weights=WEIGHTS, new_head=True, head=head)}, 4)


def test_no_models_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.models is empty"):
        check_models({}, 4)
