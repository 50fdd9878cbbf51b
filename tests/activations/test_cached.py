"""Cached activations are shuffled, resumed exactly, the same on any number of ranks, and never wrong."""

import json
import os
import threading
import tracemalloc
from collections.abc import Generator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from impact_lightning.activations import ActivationBatch, CachedActivations, Tokens
from impact_lightning.activations.cached import CachedEvalLoader, CachedLoader
from impact_lightning.activations.manifest import Configuration, Manifest, Origin
from impact_lightning.activations.shards import Shards, read_record, write_shard
from impact_lightning.activations.stored_array import StoredArray
from impact_lightning.backbones import Backbone
from impact_lightning.types import UserError
from tests.activations.tiny import LENGTH, N_IMAGES, SITES, make_backbone, make_shards
from tests.distributed import run_distributed

WIDTH, ROWS = 6, (50, 0, 37, 50)  # rows of each shard; one lost all its images
TOTAL = sum(ROWS)


def write_numbers(root: Path, rows: tuple[int, ...] = ROWS, width: int = WIDTH) -> Path:
    """Write shards whose rows hold their own number, as does their image."""
    origin = Origin("numbers", {}, "weights", "images", {}, {"site": width}, Tokens("cls"), 1, "32-true")
    configuration = Configuration(origin, "float32", n_images=len(rows), images_per_shard=1, batch_size=1)
    first = 0
    for number, n in enumerate(rows):
        index = np.arange(first, first + n, dtype=np.int32)
        arrays = {"index": np.stack([index, index * 0, index % 3], 1), "site": np.repeat(index[:, None], width, 1)}
        write_shard(root, number, arrays | {"site": arrays["site"].astype(np.float32)}, configuration.digest())
        first += n
    shards = [read_record(root, number, configuration.digest()) for number in range(len(rows))]
    Manifest(configuration, shards, {}).write(root)
    return root


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbers(tmp_path_factory.mktemp("numbers"))


def make(root: Path, **changes: Any) -> CachedLoader:
    settings: dict[str, Any] = {"batch": 8, "block": 5, "buffer_blocks": 4, "seed": 0}
    return CachedLoader(Shards(root), ["site"], **(settings | changes))


def by_hand(epoch: int) -> list[list[int]]:
    """Return the batches of an epoch: 27 blocks of 5 of 137 rows, in 6 buffers of 20, each of 2 batches of 8."""
    generator = np.random.default_rng([0, epoch])
    offset = int(generator.integers(137 - 27 * 5 + 1))
    blocks = generator.permutation(27)
    batches = []
    for buffer in range(6):
        rows = [offset + 5 * int(block) + i for block in blocks[4 * buffer : 4 * buffer + 4] for i in range(5)]
        order = np.random.default_rng([0, epoch, buffer]).permutation(20)
        shuffled = [rows[place] for place in order]
        batches += [sorted(shuffled[:8]), sorted(shuffled[8:16])]
    return batches


def rows_of(batch: ActivationBatch) -> list[int]:
    rows = batch.image.tolist()
    assert torch.equal(batch.activations["site"], batch.image[:, None].expand(-1, WIDTH).float())
    assert batch.label.tolist() == [row % 3 for row in rows]
    return rows


def epochs(loader: CachedLoader, n: int) -> list[list[int]]:
    return [rows_of(batch) for _ in range(n) for batch in loader]


def test_rows_are_read_in_ascending_order_within_a_batch_alone(numbers: Path) -> None:
    batches = epochs(make(numbers), 1)
    assert all(batch == sorted(batch) for batch in batches)
    assert batches != sorted(batches)


def test_blocks_and_rows_are_shuffled_as_by_hand(numbers: Path) -> None:
    assert epochs(make(numbers), 3) == [batch for epoch in range(3) for batch in by_hand(epoch)]


@pytest.mark.parametrize("steps", [0, 1, 5, 12, 19])
def test_resume_equals_an_uninterrupted_run(numbers: Path, steps: int) -> None:
    first = make(numbers)
    whole, part = divmod(steps, len(first))
    seen = epochs(first, whole) + [rows_of(batch) for batch in islice(first, part)]
    resumed = make(numbers)
    resumed.load_state_dict(first.state_dict())
    assert seen + epochs(resumed, 3 - whole) == epochs(make(numbers), 3)


def on_rank(rank: int, root: Path) -> list[list[int]]:
    return epochs(make(root), 2)


def test_two_ranks_share_the_batches_of_one(numbers: Path) -> None:
    first, second = run_distributed(on_rank, numbers)
    together = [[n for pair in zip(a, b, strict=True) for n in pair] for a, b in zip(first, second, strict=True)]
    assert together == by_hand(0) + by_hand(1)


def test_every_row_is_read_sooner_or_later(numbers: Path) -> None:
    assert {row for batch in epochs(make(numbers), 30) for row in batch} == set(range(TOTAL))


def test_a_buffer_larger_than_the_set_holds_all_of_it(numbers: Path) -> None:
    (batch,) = make(numbers, block=500, buffer_blocks=9, batch=TOTAL)
    assert sorted(rows_of(batch)) == list(range(TOTAL))


def test_batches_stay_as_they_were_when_others_are_read(numbers: Path) -> None:
    kept = list(make(numbers))
    assert [rows_of(batch) for batch in kept] == by_hand(0)


def evaluated(rank: int, root: Path) -> list[list[int]]:
    return [rows_of(batch) for batch in CachedActivations(root, root, eval_batch_size=16).val_dataloader()]


def test_evaluation_sees_every_row_once_on_uneven_ranks(numbers: Path) -> None:
    first, second = run_distributed(evaluated, numbers)
    assert (len(first), len(second)) == (5, 4)
    assert sorted(first + second) == sorted(evaluated(0, numbers))
    assert sorted(row for batch in first + second for row in batch) == list(range(TOTAL))


def test_never_holds_more_than_its_buffer(tmp_path: Path) -> None:
    rows, width = 32_768, 128
    root = write_numbers(tmp_path, (rows // 2, rows // 2), width)
    bytes_per_row = 4 * width + 3 * 4  # with its index
    loader = make(root, batch=1024, block=64, buffer_blocks=64)
    tracemalloc.start()
    for _ in loader:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4096 * bytes_per_row < rows * bytes_per_row / 2  # two buffers and a few batches


def test_an_iterator_that_was_left_shares_no_memory_with_the_next(numbers: Path) -> None:
    loader = make(numbers)
    left = iter(loader)
    first = next(left)
    assert [rows_of(first), *epochs(loader, 1)] == by_hand(0)
    assert rows_of(next(left)) == by_hand(0)[1]


def test_leaving_early_ends_the_thread(numbers: Path) -> None:
    before = threading.active_count()
    batches = iter(make(numbers))
    next(batches)
    assert threading.active_count() > before
    assert isinstance(batches, Generator)
    batches.close()
    assert threading.active_count() == before


def test_leaving_early_does_not_wait_for_the_buffer(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, is_left = make(numbers), threading.Event()
    is_left.set()
    monkeypatch.setattr(os, "preadv", None)  # nothing is read any more
    loader._read(0, 0, is_left)


def test_short_reads_are_continued(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, memory, place: preadv(file, [memory[0][:7]], place))
    assert epochs(make(numbers), 1) == by_hand(0)


def test_images_are_not_split_over_evaluation_batches(tmp_path: Path, backbone: Backbone) -> None:
    root = make_shards(tmp_path, backbone)
    for size, images in ((12, 2), (3, 1), (45, 9)):  # of 5 tokens; shards hold 8 images
        batches = list(CachedActivations(root, root, batch_size=10, eval_batch_size=size).val_dataloader())
        expected = torch.arange(N_IMAGES).split(images)
        assert [batch.image.tolist() for batch in batches] == [e.repeat_interleave(LENGTH).tolist() for e in expected]


@pytest.mark.parametrize("tokens", [Tokens("patches"), Tokens("random", 3), Tokens("cls")])
def test_whole_images_of_any_tokens(tmp_path: Path, backbone: Backbone, tokens: Tokens) -> None:
    data = CachedActivations(make_shards(tmp_path, backbone, tokens=tokens), batch_size=10, eval_batch_size=9)
    t = {"patches": 4, "random": 3, "cls": 1}[tokens.kind]
    assert data.shards["train"].per_image == t
    sizes = [len(batch.image) for batch in CachedEvalLoader(data.shards["train"], data.sites, 9)]
    assert sizes[0] == 9 // t * t
    assert sum(sizes) == N_IMAGES * t
    assert all(size % t == 0 for size in sizes)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def root(tmp_path: Path, backbone: Backbone) -> Path:
    return make_shards(tmp_path / "train", backbone)


def read_everything(root: Path) -> None:
    for _ in CachedActivations(root, batch_size=10, block_rows=5).train_dataloader():
        pass


def test_refuses_a_shard_cut_short(root: Path) -> None:
    path = root / SITES[1] / "00002.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=rf"{path} was cut short or changed: 1558 bytes instead of 1568"):
        CachedActivations(root)


def test_refuses_a_missing_shard(root: Path) -> None:
    path = root / SITES[0] / "00001.npy"
    path.unlink()
    with pytest.raises(UserError, match=rf"{path} is missing; run `extract` again"):
        CachedActivations(root)


@pytest.mark.parametrize("name", ["index", *SITES])
@pytest.mark.parametrize("place", [12, 128, -1])
def test_refuses_a_flipped_bit(root: Path, name: str, place: int) -> None:
    path = root / name / "00001.npy"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path} (is damaged|cannot be read)"):
        read_everything(root)


def test_refuses_a_byte_that_flips_after_opening(root: Path) -> None:
    loader = CachedActivations(root, batch_size=10, block_rows=5, buffer_blocks=4).train_dataloader()
    path = root / SITES[1] / "00002.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    before = threading.active_count()
    with pytest.raises(UserError, match=rf"{path} is damaged: rows 0 to 29 do not have their checksum"):
        list(loader)
    assert threading.active_count() == before


def test_any_flipped_bit_of_a_header_is_refused_or_means_the_same(root: Path) -> None:
    array = Shards(root).arrays[0][SITES[1]]
    content = array.path.read_bytes()
    n_refused = 0
    for place, bit in product(range(array.offset), range(8)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        array.path.write_bytes(damaged)
        try:
            StoredArray(array.path, *array.shape, "float16", array.stored).check()
        except UserError as error:
            n_refused += str(error).startswith(str(array.path))
    assert n_refused >= 8 * array.offset - 5


@pytest.mark.parametrize("size", [0, 100, 1000])
def test_refuses_a_file_cut_short_after_opening(root: Path, size: int) -> None:
    loader = CachedActivations(root, batch_size=10, block_rows=5).train_dataloader()
    path = root / SITES[1] / "00001.npy"
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(UserError, match=rf"{path} (was cut short|cannot be read).*; run `extract` again"):
        list(loader)


def test_refuses_a_file_cut_short_between_two_epochs(root: Path) -> None:
    loader = CachedActivations(root, batch_size=10, block_rows=5).train_dataloader()
    list(loader)
    path = root / SITES[1] / "00001.npy"
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=rf"{path} was cut short while it was read; run `extract` again"):
        list(loader)


def test_refuses_a_file_that_vanished_after_opening(root: Path) -> None:
    loader = CachedActivations(root, batch_size=10, block_rows=5).train_dataloader()
    path = root / SITES[1] / "00001.npy"
    path.unlink()
    with pytest.raises(UserError, match=rf"{path} cannot be read \(.*No such file"):
        list(loader)


def test_refuses_a_missing_manifest(root: Path) -> None:
    (root / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json does not exist: .* incomplete .* run `extract` again"):
        CachedActivations(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(schema=2), "has schema 2"),
        (lambda content: content["configuration"].update(batch_size=5), "was changed"),
        (lambda content: content["shards"].pop(), "is incomplete: 2 of 3 shards"),
        (lambda content: content.pop("shards"), "is damaged"),
    ],
)
def test_refuses_a_manifest_that_is_not_what_was_written(root: Path, change: Any, message: str) -> None:
    path = root / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"manifest\.json {message}"):
        CachedActivations(root)


@pytest.mark.parametrize("change", [lambda shard: shard.update(rows=4096), lambda shard: shard["arrays"].popitem()])
def test_refuses_a_shard_that_does_not_fit_its_checksums(root: Path, change: Any) -> None:
    content = json.loads((root / "manifest.json").read_text())
    change(content["shards"][1])
    (root / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{root}: what is said of shard 1 does not fit its rows and sites"):
        CachedActivations(root)


def test_refuses_half_a_manifest(root: Path) -> None:
    path = root / "manifest.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        CachedActivations(root)


def test_refuses_activations_of_another_model(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    CachedActivations(root, backbone=backbone, batch_size=10)
    with pytest.raises(UserError, match=rf"{root} holds activations of vit_tiny_patch16_224 with weights"):
        CachedActivations(root, backbone=make_backbone(tmp_path, seed=1), batch_size=10)


def test_refuses_splits_of_two_models(root: Path, tmp_path: Path) -> None:
    other = make_shards(tmp_path / "other", make_backbone(tmp_path, seed=1))
    with pytest.raises(UserError, match=rf"{other} does not go with data\.train: its weights"):
        CachedActivations(root, other)


def test_refuses_the_checkpoint_of_other_shards(root: Path, tmp_path: Path, backbone: Backbone) -> None:
    other = make_shards(tmp_path / "other", backbone, dtype="float32")
    first, second = (CachedActivations(path, batch_size=10) for path in (root, other))
    first.train_dataloader()
    second.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="the checkpoint was written with another data"):
        second.train_dataloader()


def test_refuses_a_batch_that_no_buffer_fills(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.batch_size 4096 must lie between 1 and the 110 rows"):
        CachedActivations(root).train_dataloader()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": ["blocks.0.q"]}, r"data\.sites: .* has no blocks\.0\.q; it has blocks\.0\.mlp_neuron"),
        ({"block_rows": 0}, r"data\.block_rows must be at least 1"),
        ({"buffer_blocks": 0}, r"data\.buffer_blocks must be at least 1"),
        ({"seed": -1}, r"data\.seed must not be negative"),
    ],
)
def test_refuses_settings_that_cannot_be(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CachedActivations(root, **settings)


def test_nothing_is_noted_of_a_whole_split(root: Path) -> None:
    assert CachedActivations(root).notes("train") == ()


def test_refuses_a_split_that_was_not_given(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.val is not set"):
        CachedActivations(root).val_dataloader()


def test_rows_are_float32_where_they_are_used(root: Path) -> None:
    data = CachedActivations(root, batch_size=10, sites=SITES[:1])
    batch = next(iter(data.train_dataloader()))
    assert list(batch.activations) == data.sites == SITES[:1]
    assert batch.activations[SITES[0]].dtype == torch.float16
    used = data.on_after_batch_transfer(batch, 0)
    assert torch.equal(used.activations[SITES[0]], batch.activations[SITES[0]].float())
    assert data.width(SITES[0]) == 96
    assert data.statistics(SITES[0]).mean.shape == (96,)
