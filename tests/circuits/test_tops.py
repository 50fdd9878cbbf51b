"""Top images of nodes are those of a slow search through all values, whatever the batches; files tell them by row."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from impact_lightning.backbones import capture
from impact_lightning.circuits import tops
from impact_lightning.circuits.nodes import Nodes
from impact_lightning.circuits.task_data import TaskData
from impact_lightning.circuits.tasks import Task
from impact_lightning.circuits.tops import Tops, Wanted, find_tops, report_rows, write_tops
from impact_lightning.data.images import ImageData
from impact_lightning.data.rooms import Rooms
from impact_lightning.data.scenes import SceneData
from impact_lightning.data.transforms import Preprocess
from impact_lightning.types import Key
from tests.circuits.test_fold import pictures, vit
from tests.data.pictures import write_folders

N = 11


def values_of(model: Any, images: Tensor) -> Tensor:
    """Return all nodes of all images one by one, `(N, T, n)`."""
    nodes, rows = Nodes(model), []
    for image in images:
        with capture(model, [str(site) for site in nodes.sites]) as captured:
            model(image[None])
        rows.append(torch.cat([captured[str(site)] for site in nodes.sites], 2))
    return torch.cat(rows)


def some_nodes(nodes: Nodes, seed: int, share: float = 0.1) -> Tensor:
    drawn = torch.rand(nodes.n, generator=torch.Generator().manual_seed(seed))
    return (drawn < share).nonzero().flatten()


def wanted_of(nodes: Nodes, seed: int, n_tokens: int) -> Wanted:
    generator = torch.Generator().manual_seed(seed)
    return Wanted(some_nodes(nodes, seed), torch.randn(n_tokens, nodes.n, dtype=torch.float64, generator=generator))


def brute_force(x: Tensor, wanted: Wanted, places: list[int], node: int, shown: int) -> list[tuple[int, int, float]]:
    """Return place, token and value of the top images of one node, number by number."""
    found = []
    for place in sorted(places):
        best = -1.0, -1, 0.0
        for token in range(x.shape[1]):
            value = float(x[place, token, node])
            constant = float(wanted.constants[token if len(wanted.constants) > 1 else 0, node])
            if abs(value - constant) > best[0]:
                best = abs(value - constant), token, value
        found.append((best[0], place, best[1], best[2]))
    found.sort(key=lambda one: -one[0])
    return [(place, token, value) for _, place, token, value in found[:shown]]


@pytest.mark.parametrize("kind", ["plain", "registers, qk norm", "average pooling", "packed GLU"])
@pytest.mark.parametrize("batch", [1, 4, 32])
def test_top_images_are_those_of_a_slow_search(kind: str, batch: int) -> None:
    model, images = vit(kind), pictures(N)
    nodes, x, prefix = Nodes(model), values_of(model, images), int(model.num_prefix_tokens)
    places = [9, 1, 4, 0, 10, 3]  # of a task: not all images in memory, in any order
    circuits = [wanted_of(nodes, 1, 1), wanted_of(nodes, 2, x.shape[1])]
    found = find_tops(model, nodes, images.__getitem__, torch.tensor(places), circuits, shown=4, batch=batch)
    for wanted, one in zip(circuits, found, strict=True):
        assert one.grid == (2, 2)
        assert one.n_prefix == prefix
        assert torch.equal(one.ids, wanted.ids)
        assert one.maps.shape == (len(wanted.ids), 4, 4)
        torch.testing.assert_close(one.constants, wanted.constants.mean(0)[wanted.ids])
        for k, node in enumerate(wanted.ids.tolist()):
            expected = brute_force(x, wanted, places, node, 4)
            assert one.places[k].tolist() == [place for place, _, _ in expected]
            assert one.tokens[k].tolist() == [token for _, token, _ in expected]
            assert one.values[k].tolist() == pytest.approx([value for *_, value in expected], rel=1e-9)
            for rank, (place, *_) in enumerate(expected):
                torch.testing.assert_close(one.maps[k, rank], x[place, prefix:, node].float())


def test_fewer_images_than_are_shown_are_all_of_them() -> None:
    model, images = vit(), pictures(3)
    nodes = Nodes(model)
    (found,) = find_tops(model, nodes, images.__getitem__, torch.arange(3), [wanted_of(nodes, 1, 1)], batch=2)
    assert found.places.shape == found.maps.shape[:2] == (len(found.ids), 3)
    assert found.places.sort(1).values.tolist() == [[0, 1, 2]] * len(found.ids)


def test_images_that_are_alike_come_in_their_order() -> None:
    model, images = vit(), pictures(1).expand(6, -1, -1, -1)
    nodes = Nodes(model)
    places, wanted = torch.arange(6).flip(0), wanted_of(nodes, 1, 1)
    (found,) = find_tops(model, nodes, images.__getitem__, places, [wanted], shown=2, batch=1)
    assert found.places.tolist() == [[0, 1]] * len(found.ids)


@pytest.mark.parametrize("room", [0, 1, 3])
def test_large_circuits_have_maps_of_their_first_images_alone(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = vit(), pictures(N)
    nodes = Nodes(model)
    wanted = wanted_of(nodes, 1, 1)

    def found() -> Tops:
        return find_tops(model, nodes, images.__getitem__, torch.arange(N), [wanted], shown=5, batch=2)[0]

    whole = found()
    monkeypatch.setattr(tops, "NUMBERS", (room * 4 + 1) * len(wanted.ids))
    part = found()
    assert part.maps.shape == (len(wanted.ids), room, 4)
    assert torch.equal(part.maps, whole.maps[:, :room])
    assert torch.equal(part.places, whole.places)


def test_values_that_overflow_are_numbers_in_the_file(tmp_path: Path) -> None:
    model, images = vit(), pictures(4)
    images[2] = math.nan
    nodes = Nodes(model)
    (found,) = find_tops(model, nodes, images.__getitem__, torch.arange(4), [wanted_of(nodes, 1, 1)])
    write_tops(tmp_path / "tops.json", found, torch.arange(4))
    assert json.loads((tmp_path / "tops.json").read_text())["nodes"]


def test_the_file_has_rows_values_and_short_maps(tmp_path: Path) -> None:
    maps = torch.tensor([[[1.23456, -0.0001234, 0, 4]], [[0, 0, 0, 0]], [[123456.0, 1, 2, 3]]])
    found = Tops(
        ids=torch.tensor([3, 70, 71]),
        places=torch.tensor([[1, 0], [0, 2], [2, 1]]),
        values=torch.tensor([[4.00000001, -2.0], [0.5, 0.25], [123456.789, 1.0]]).double(),
        tokens=torch.tensor([[4, 0], [1, 2], [1, 1]]),
        maps=maps,
        constants=torch.tensor([0.5, 0.0, -1.0]).double(),
        grid=(2, 2),
        n_prefix=1,
    )
    path = tmp_path / "new" / "tops.json"
    write_tops(path, found, torch.tensor([10, 21, 32]))
    content = json.loads(path.read_text())
    assert {name: content[name] for name in ("schema", "model", "split", "grid", "prefix", "constants")} == {
        **{"schema": 1, "model": "whole", "split": "test", "grid": [2, 2], "prefix": 1},
        "constants": {"3": 0.5, "70": 0.0, "71": -1.0},
    }
    assert content["nodes"] == {
        "3": [
            {"row": 21, "value": 4.0, "token": 4, "map": [1.235, -0.0, 0.0, 4.0]},
            {"row": 10, "value": -2.0, "token": 0, "map": None},
        ],
        "70": [
            {"row": 10, "value": 0.5, "token": 1, "map": [0.0] * 4},
            {"row": 32, "value": 0.25, "token": 2, "map": None},
        ],
        "71": [
            {"row": 32, "value": 123457.0, "token": 1, "map": [123500.0, 0.0, 0.0, 0.0]},
            {"row": 21, "value": 1.0, "token": 1, "map": None},
        ],
    }


def shown_are(data: TaskData) -> bool:
    """Return whether the images in memory are those of the rows."""
    images, rows = data.images["report"], report_rows(data)
    read = data.data.split("test").__getitems__([Key(0, row) for row in rows.tolist()]).batch.images
    return torch.equal(images.pixels, read)


def test_rows_are_those_of_the_images_in_memory(tmp_path: Path) -> None:
    rooms = SceneData(Rooms(size=16), label=["shape"], n_train=120, n_val=1, n_test=60, eval_batch_size=8)
    data = TaskData(rooms, train_images=6, select_images=4, report_images=4, seed=3)
    data.setup("test")
    assert shown_are(data)
    for split, n in (("train", 12), ("test", 12)):
        write_folders(tmp_path / split, {"cat": n, "dog": n})
    (tmp_path / "test" / "cat" / "3.jpg").write_bytes(b"no picture")
    folders = ImageData(str(tmp_path), on_error="skip", preprocess=Preprocess(size=16))
    data = TaskData(folders, [Task("pair", (0, 1))], train_images=4, select_images=2, report_images=12)
    data.setup("test")
    assert len(data.images["report"].pixels) == 23
    assert shown_are(data)


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds() -> None:
    model, images = vit(), pictures(N)
    nodes = Nodes(model)
    wanted = wanted_of(nodes, 1, 1)
    (expected,) = find_tops(model, nodes, images.__getitem__, torch.arange(N), [wanted], batch=4)
    on_gpu = images.cuda()
    (found,) = find_tops(
        *(model.cuda(), nodes, lambda places: on_gpu[places.cuda()], torch.arange(N)),
        [Wanted(wanted.ids, wanted.constants.cuda())],
        batch=4,
    )
    for ours, theirs in zip(found[:6], expected[:6], strict=True):
        torch.testing.assert_close(ours, theirs)
