"""A study of images in any batches is the same, and holds what a method says of one model alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from impact_lightning.attribution.baselines import Centre, Random
from impact_lightning.attribution.gradients import GradientTimesInput
from impact_lightning.attribution.method import Method
from impact_lightning.attribution.protocols import Patch
from impact_lightning.attribution.randomisation import cascade, randomised, rank_correlation
from impact_lightning.attribution.study import NOISY, Study
from impact_lightning.attribution.substrates import Pixels
from impact_lightning.metrics.pointing_game import pointing_game
from impact_lightning.types import ImageBatch, UserError
from tests.attribution.curve_models import CLASSES, pictures, vit

N = 6
SANITY, GALLERY, SHOWN = (4, 1), (5, 0), (2, 4, 5)
METHODS: dict[str, Method] = {"gradient": GradientTimesInput(), "random": Random()}
IMAGES, LABELS = pictures(N), torch.arange(N) % CLASSES
MASKS = torch.rand(N, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.3


def study(methods: dict[str, Method] | None = None, **changes: Any) -> Study:
    settings: dict[str, Any] = {"explain_label": False, "sanity": SANITY, "gallery": GALLERY, "shown": SHOWN}
    settings |= {"seed": 3, "batch_size": 64, **changes}
    pixels = Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Study("tiny", vit(), METHODS if methods is None else methods, [Patch(step=4)], pixels, **settings)


def batch(rows: Sequence[int], *, has_masks: bool = True) -> ImageBatch:
    at = torch.tensor(rows)
    return ImageBatch(IMAGES[at], LABELS[at], at, masks=MASKS[at] if has_masks else None)


def looked(batches: Sequence[Sequence[int]], has_masks: bool = True, **changes: Any) -> Study:
    found = study(**changes)
    with torch.inference_mode():  # as a test runs
        for rows in batches:
            found.look(batch(rows, has_masks=has_masks))
    found.gather()
    return found


@pytest.fixture(scope="module")
def whole() -> Study:
    return looked([range(N)])


@pytest.mark.parametrize("batches", [[[0, 1], [2, 3], [4, 5]], [[5, 2, 0, 4], [3, 1]], [[3], [5], [0], [1], [4], [2]]])
def test_batches_and_their_order_change_nothing(batches: list[list[int]], whole: Study) -> None:
    found = looked(batches)
    ours, theirs = found.scores(), whole.scores()
    assert ours.keys() == theirs.keys()
    for key, one in theirs.items():
        assert ours[key].rows.tolist() == one.rows.tolist()
        torch.testing.assert_close(ours[key].values, one.values, rtol=1e-9, atol=1e-9, equal_nan=True)
    for curve, values in whole.drawn().items():
        torch.testing.assert_close(found.drawn()[curve], values)
    assert [one.row for one in found.examples] == [one.row for one in whole.examples] == sorted(GALLERY)
    for mine, other in zip(found.examples, whole.examples, strict=True):
        torch.testing.assert_close(mine.maps, other.maps)


CHECKED = ("likeness", "sensitivity_n", "infidelity", "max_sensitivity")


def test_every_image_has_its_numbers_and_some_are_checked(whole: Study) -> None:
    for (_, measure), one in whole.scores().items():
        assert one.rows.tolist() == (sorted(SANITY) if measure.startswith(CHECKED) else list(range(N)))
        assert one.values.dtype == torch.float64


def test_curves_are_kept_of_some_images(whole: Study) -> None:
    assert {values.shape for values in whole.drawn().values()} == {(3, 5)}
    (rows, _), *_ = whole.curves["gradient", "patch", "morf"]
    assert rows.tolist() == list(SHOWN)


def test_places_are_those_of_the_model_and_of_its_control(whole: Study) -> None:
    targets = vit()(IMAGES).argmax(1)
    for model, name in ((vit(), "pointing_game"), (randomised(vit(), 3), "randomised_pointing_game")):
        wanted = pointing_game(GradientTimesInput()(model, IMAGES, targets), MASKS)
        torch.testing.assert_close(whole.scores()["gradient", name].values, wanted)


def test_images_without_masks_have_no_places(whole: Study) -> None:
    found, with_masks = looked([range(N)], has_masks=False).scores(), whole.scores()
    gone = {measure for _, measure in with_masks.keys() - found.keys()}
    assert gone == {
        f"{prefix}{name}"
        for prefix in ("", "randomised_")
        for name in ("pointing_game", "energy_in_mask", "rank_accuracy", "mask_iou")
    }
    for key, one in found.items():
        torch.testing.assert_close(one.values, with_masks[key].values, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_likeness_is_that_of_maps_of_other_models_and_classes(whole: Study) -> None:
    at = torch.tensor(sorted(SANITY))
    images, method = IMAGES[at], GradientTimesInput()
    targets = vit()(images).argmax(1)
    own = method(vit(), images, targets)
    others = {name: method(model, images, targets) for name, model in cascade(vit(), 3)}
    others["everything"] = method(randomised(vit(), 3), images, targets)
    assert others.keys() == {"head", "blocks 2 and above", "blocks 1 and above", "blocks 0 and above", "everything"}
    for name, maps in others.items():
        found = whole.scores()["gradient", f"likeness_without_{name.replace(' ', '_')}"].values
        torch.testing.assert_close(found, rank_correlation(own, maps), rtol=1e-9, atol=1e-9)
    found = whole.scores()["gradient", "likeness_of_another_class"].values
    every = torch.stack([rank_correlation(own, method(vit(), images, torch.full((2,), c))) for c in range(CLASSES)])
    for i, target in enumerate(targets.tolist()):
        assert any(found[i].item() == pytest.approx(x) for c, x in enumerate(every[:, i].tolist()) if c != target)


def test_maps_that_look_at_no_model_are_alike(whole: Study) -> None:
    for (method, measure), one in whole.scores().items():
        if method == "random" and measure.startswith("likeness"):
            torch.testing.assert_close(one.values, torch.ones(2, dtype=torch.float64))


def test_the_label_can_be_explained(whole: Study) -> None:
    assert {one.target == one.label for one in whole.examples} != {True}
    found = looked([range(N)], explain_label=True)
    p = vit()(IMAGES).softmax(1)
    for one in found.examples:
        assert one.target == one.label == LABELS[one.row]
        assert one.probability == pytest.approx(p[one.row, one.label].item())
    wanted = GradientTimesInput()(vit(), IMAGES, LABELS)
    for one in found.examples:
        torch.testing.assert_close(one.maps["gradient"], wanted[one.row].float())


@dataclass(frozen=True)
class Counted(Method):
    """It notes how many images it has explained for whom."""

    seen: list[int]

    def __call__(self, model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
        self.seen.append(len(images))
        return Centre()(model, images, targets)


@pytest.mark.parametrize(("has_masks", "expected"), [(True, [6, 6]), (False, [6, 2])])
def test_nothing_is_explained_that_is_not_reported(has_masks: bool, expected: list[int]) -> None:
    method = Counted([])
    looked([range(N)], has_masks=has_masks, methods={"own": method})
    stages = 1 + 3  # head, and the three parts of the blocks; without anything learnt it is the control
    assert method.seen == expected + [2] * stages + [2] + [2] * NOISY
    without = Counted([])
    looked([range(N)], has_masks=False, methods={"own": without}, sanity=())
    assert without.seen == [6]


def test_logits_that_are_not_finite_are_refused() -> None:
    found = study(methods={"centre": Centre()})
    dict(found.model.named_parameters())["head.weight"].data[0, 0] = torch.nan
    with pytest.raises(UserError, match="the logits of image 0 of the batch are not finite"):
        found.look(batch(range(N)))
