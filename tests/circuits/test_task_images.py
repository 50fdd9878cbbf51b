"""Steps are a function of seed and number, balanced, and see every image as often as any other."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.circuits.task_data import TaskData
from impact_lightning.circuits.task_images import Step, steps
from impact_lightning.circuits.tasks import Images, Task
from impact_lightning.data.images import ImageData
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.data.transforms import Preprocess
from impact_lightning.types import UserError
from tests.data.pictures import write_folders


def two_sided(n: int, first: int = 0) -> Images:
    """Return `n` images of each side, at places of their own."""
    return Images(first + torch.randperm(2 * n), torch.arange(2).repeat_interleave(n))


def taken(images: list[Images], b: int, seeds: list[int], n: int, start: int = 0) -> list[Step]:
    return list(islice(steps(images, b, seeds, start), n))


def same(a: list[Step], b: list[Step]) -> bool:
    return all(torch.equal(x.places, y.places) and torch.equal(x.targets, y.targets) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------------------ steps


def test_steps_follow_their_seed() -> None:
    images = [two_sided(10)]
    assert same(taken(images, 4, [0], 9), taken(images, 4, [0], 9))
    assert not same(taken(images, 4, [0], 9), taken(images, 4, [1], 9))


@pytest.mark.parametrize("start", [1, 4, 5, 11])
def test_a_restart_continues(start: int) -> None:
    images = [two_sided(10), two_sided(7)]
    assert same(taken(images, 4, [0, 3], 20)[start:], taken(images, 4, [0, 3], 20 - start, start))


def test_a_circuit_alone_sees_what_it_sees_beside_others() -> None:
    images = [two_sided(10), two_sided(7), two_sided(5)]
    beside = taken(images, 6, [0, 1, 2], 12)
    for p in range(3):
        alone = taken(images[p : p + 1], 6, [p], 12)
        assert same(alone, [Step(s.places[p : p + 1], s.targets[p : p + 1]) for s in beside])


@pytest.mark.parametrize("b", [2, 4, 10])
def test_every_step_has_as_many_of_each_side_and_the_targets_of_its_images(b: int) -> None:
    images = two_sided(10)
    target_of = dict(zip(images.rows.tolist(), images.targets.tolist(), strict=True))
    for step in taken([images], b, [0], 15):
        assert step.targets[0].bincount().tolist() == [b // 2, b // 2]
        assert [target_of[place] for place in step.places[0].tolist()] == step.targets[0].tolist()


@pytest.mark.parametrize(("n", "b"), [(10, 4), (10, 20), (7, 2), (9, 6)])
def test_a_pass_sees_every_image_once_in_another_order(n: int, b: int) -> None:
    images = two_sided(n)
    found = taken([images], b, [0], 3 * 2 * n)
    for side in (0, 1):
        seen = torch.cat([step.places[0][step.targets[0] == side] for step in found])
        own = images.rows[images.targets == side].sort().values
        passes = [part for part in seen.split(n) if len(part) == n]
        assert len(passes) >= 3
        assert all(torch.equal(part.sort().values, own) for part in passes)
        assert not torch.equal(passes[0], passes[1])


def test_a_step_larger_than_the_data_begins_anew() -> None:
    (step,) = taken([two_sided(3)], 16, [0], 1)
    assert step.places[0].bincount().max() == 3  # 8 of 3: thrice at most
    assert step.places[0].bincount().min() == 2


def test_more_classes_than_images_of_a_step_are_seen_once_each_pass() -> None:
    images = Images(torch.arange(24), torch.arange(24) % 12)
    found = torch.cat([step.places[0] for step in taken([images], 8, [0], 3)])
    assert torch.equal(found.sort().values, torch.arange(24))


def test_an_odd_step_of_three_classes_has_them_all() -> None:
    images = Images(torch.arange(30), torch.arange(30) % 3)
    for step in taken([images], 8, [0], 5):
        assert sorted(step.targets[0].bincount().tolist()) == [2, 3, 3]


# ----------------------------------------------------------------------------------------------------------- images


def rooms(**more: Any) -> TaskData:
    scenes = SceneData(source=Rooms(size=16), label=["shape"], n_train=80, n_val=1, n_test=40, eval_batch_size=8)
    data = TaskData(scenes, **{"train_images": 4, "select_images": 3, "report_images": 3, **more})
    data.setup("fit")
    return data


def pixels_of(data: TaskData, name: str) -> list[Tensor]:
    return [data.images[name].pixels[images.rows] for images in data.images[name].images]


def test_the_three_sets_are_disjoint_and_balanced() -> None:
    data = rooms()
    for learnt, select in zip(*(pixels_of(data, name) for name in ("train", "select")), strict=True):  # of each task
        assert not (learnt.flatten(1)[:, None] == select.flatten(1)[None]).all(2).any()
    for name, n in (("train", 4), ("select", 3), ("report", 3)):
        for images in data.images[name].images:
            assert images.targets.bincount().tolist() == [n, n]


def test_images_are_those_of_the_data() -> None:
    data = rooms()
    held = data.images["report"]
    split = data.data.split("test")
    every = {int(label) for label in split.labels}  # type: ignore[attr-defined]
    assert every == set(range(data.n_classes))
    some = held[torch.tensor([1, 0])]
    assert some.dtype == torch.float32
    expected = (held.pixels[[1, 0]].float() / 255 - torch.tensor(held.mean)[:, None, None]) / torch.tensor(held.std)[
        :, None, None
    ]
    torch.testing.assert_close(some, expected)


def test_training_and_reported_images_do_not_depend_on_other_tasks() -> None:
    together, alone = rooms(), rooms(tasks=[Task("rest", (1,))])
    for name in ("train", "report"):
        assert torch.equal(pixels_of(together, name)[1], pixels_of(alone, name)[0])


def test_images_that_sizes_are_chosen_on_do_not_depend_on_other_tasks() -> None:
    together, alone = rooms(), rooms(tasks=[Task("rest", (1,))])
    assert torch.equal(pixels_of(together, "select")[1], pixels_of(alone, "select")[0])


def test_a_control_has_the_images_of_its_task() -> None:
    data = rooms()
    n = data.n_classes
    assert [task.nonsense for task in data.tasks] == [False] * n + [True] * n
    for name in ("train", "report"):
        pixels = pixels_of(data, name)
        assert all(torch.equal(pixels[p], pixels[n + p]) for p in range(n))


def folders(root: Path, n: int = 8, **more: Any) -> TaskData:
    for split in ("train", "test"):
        if not (root / split).exists():
            write_folders(root / split, {"cat": n, "dog": n})
    images = ImageData(str(root), preprocess=Preprocess(size=16), eval_batch_size=4, on_error="skip")
    return TaskData(images, **{"train_images": 4, "select_images": 2, "report_images": 4, **more})


def test_damaged_images_are_left_out(tmp_path: Path) -> None:
    whole = folders(tmp_path, report_images=8)
    (tmp_path / "test" / "cat" / "2.jpg").write_bytes(b"no picture")
    whole.setup("fit")
    for images in whole.images["report"].images:
        assert len(images.rows) == len(images.targets) == 15
        assert len(whole.images["report"].pixels) == 15
    cat, dog = whole.images["report"].images[:2]
    assert cat.targets.bincount().tolist() == [8, 7]
    assert set(cat.rows[cat.targets == 0].tolist()) == set(dog.rows[dog.targets == 1].tolist())  # places, not rows


def test_a_side_of_damaged_images_is_refused(tmp_path: Path) -> None:
    data = folders(tmp_path)
    for path in (tmp_path / "test" / "dog").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="a side has no image that can be read"):
        data.setup("fit")


def test_a_damaged_class_among_others_is_refused(tmp_path: Path) -> None:
    data = folders(tmp_path, tasks=[Task("among", (0, 1))])
    for path in (tmp_path / "test" / "dog").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="no image that can be read"):
        data.setup("fit")


def test_all_predictions_without_images_to_choose_sizes_on_are_refused(tmp_path: Path) -> None:
    data = folders(tmp_path, tasks=[Task("kl")], train_images=8)
    with pytest.raises(UserError, match="select"):
        data.setup("fit")


def test_too_few_images_to_choose_sizes_on_are_said_to_be_that(tmp_path: Path) -> None:
    data = folders(tmp_path, train_images=8)
    with pytest.raises(UserError, match="select"):
        data.setup("fit")


@pytest.mark.parametrize("name", ["train_images", "select_images", "report_images"])
def test_too_few_images_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"data.{name} must be at least 2, got 1"):
        folders(tmp_path, **{name: 1})


def test_a_class_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task pair: class 2 is none of 2"):
        folders(tmp_path, tasks=[Task("pair", (0, 2))])
