"""Streamed shards: nothing is repeated, shards are divided over ranks and workers, and a run resumes exactly."""

import json
import logging
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from impact_lightning.data.images import ImageData
from impact_lightning.data.loader import TrainLoader
from impact_lightning.data.streams import Read, ShardEvalOrder, ShardOrder
from impact_lightning.data.transforms import Preprocess
from impact_lightning.data.webdataset import WebDatasetSource
from impact_lightning.types import Key, UserError
from tests.data.pictures import jpeg, table, write_shards, write_tar
from tests.distributed import run_distributed

LENGTHS = [7, 5, 9, 6, 8, 3]  # 38 samples
SMALL = Preprocess(size=8)


def order(ranks: int = 1, workers: int = 1, batch: int = 4) -> ShardOrder:
    return ShardOrder(rows=sum(LENGTHS), batch=batch, seed=0, lengths=tuple(LENGTHS), ranks=ranks, workers=workers)


def shard_of(row: int) -> int:
    return next(shard for shard in range(len(LENGTHS)) if row < sum(LENGTHS[: shard + 1]))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 1), (2, 2), (4, 2)])
def test_an_epoch_repeats_nothing_and_leaves_out_less_than_a_batch_per_worker(ranks: int, workers: int) -> None:
    plan = order(ranks, workers)
    for epoch in range(3):
        rows = [int(row) for step in range(len(plan)) for row in plan.rows_at(epoch, step)]
        assert len(rows) == len(set(rows)) == len(plan) * plan.batch
        assert sum(LENGTHS) - len(rows) < workers * plan.batch + workers * ranks


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (2, 2)])
def test_every_reader_goes_through_its_own_shards_from_front_to_back(ranks: int, workers: int) -> None:
    plan = order(ranks, workers)
    seen: list[set[int]] = []
    for rank in range(ranks):
        for worker in range(workers):
            steps = range(worker, len(plan), workers)
            rows = [int(row) for step in steps for row in plan.rows_at(0, step)[rank::ranks]]
            shards = [shard_of(row) for row in rows]
            assert len(set(shards)) == 1 + sum(a != b for a, b in pairwise(shards))
            assert all(b == a + 1 for a, b in pairwise(rows) if shard_of(a) == shard_of(b))
            seen.append(set(shards))
    assert sum(map(len, seen)) <= len(LENGTHS) + ranks * workers - 1  # only neighbours share a shard


def test_epochs_and_seeds_shuffle_the_shards() -> None:
    first = [order().rows_at(epoch, 0).tolist() for epoch in range(6)]
    assert len({tuple(rows) for rows in first}) > 2
    assert order().rows_at(0, 0).tolist() == first[0]


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
def test_evaluation_visits_the_same_batches_in_another_order(lanes: int) -> None:
    plan, plain = ShardEvalOrder(38, 4, lanes=lanes), ShardEvalOrder(38, 4)
    visited = sorted(plan.rows_at(step).tolist() for step in range(len(plan)))
    assert visited == [plain.rows_at(step).tolist() for step in range(len(plain))]


def webdataset(root: Path, **settings: Any) -> ImageData:
    write_shards(root, LENGTHS)
    write_shards(root, LENGTHS, "val")
    return make(root, "wds", **settings)


def hub(root: Path, **settings: Any) -> ImageData:
    start = 0
    root.mkdir(exist_ok=True)
    for shard, length in enumerate(LENGTHS):
        for split in ("train", "validation"):
            numbers = list(range(start, start + length))
            table(numbers).to_parquet(str(root / f"{split}-{shard:05}-of-{len(LENGTHS):05}.parquet"))
        start += length
    return make(root, "hfids", **settings)


def make(root: Path, source: Any, **settings: Any) -> ImageData:
    return ImageData(
        **{"root": str(root), "source": source, "preprocess": SMALL, "batch_size": 4, "eval_batch_size": 4, **settings}
    )


SOURCES = pytest.mark.parametrize("source", [webdataset, hub])


def train_loader(data: ImageData) -> TrainLoader:
    """Return a loader at the beginning; the DataModule would continue where its last one stood."""
    images = data.split("train")
    return TrainLoader(images, data.train_order(images), workers=data.workers)


def index_of(loader: Any, epochs: int = 1) -> list[list[int]]:
    return [batch.row.tolist() for _ in range(epochs) for batch in loader]


@SOURCES
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_give_the_samples_of_their_order(source: Any, workers: int, tmp_path: Path) -> None:
    data = source(tmp_path, workers=workers)
    plan = order(workers=max(workers, 1))
    batches = [batch for _ in range(2) for batch in train_loader(data)]
    expected = [plan.rows_at(0, step).tolist() for step in range(len(plan))]
    assert [batch.row.tolist() for batch in batches[: len(plan)]] == expected
    assert all((batch.labels == batch.row % 2).all() for batch in batches)
    reader = data.split("train")
    for batch in batches[:3]:
        for image, row in zip(batch.images, batch.row.tolist(), strict=True):
            assert reader.source[row].data == jpeg(row)
            assert (reader.__getitems__([Key(0, row)]).batch.images[0] == image).all()


@SOURCES
@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_take_equal_steps_and_repeat_nothing(source: Any, workers: int, tmp_path: Path) -> None:
    data = source(tmp_path, workers=workers)
    first, second = run_distributed(lambda rank: index_of(train_loader(data)))
    assert len(first) == len(second) == len(order(2, max(workers, 1)))
    rows = [row for batch in first + second for row in batch]
    assert len(rows) == len(set(rows))


@SOURCES
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_sample_once(source: Any, workers: int, world: int, tmp_path: Path) -> None:
    data = source(tmp_path, workers=workers)
    ranks = run_distributed(lambda rank: index_of(data.val_dataloader()), world_size=world)
    batches = sorted(batch for part in ranks for batch in part)
    assert batches == [list(range(start, min(start + 4, 38))) for start in range(0, 38, 4)]


@SOURCES
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_equals_an_uninterrupted_run(source: Any, workers: int, tmp_path: Path) -> None:
    data = source(tmp_path, workers=workers)
    whole = index_of(train_loader(data), 2)
    first = train_loader(data)
    seen = [batch.row.tolist() for batch in islice(first, 3)]
    resumed = train_loader(data)
    resumed.load_state_dict(first.state_dict())
    assert seen + index_of(resumed, 2) == whole


def test_refuses_to_resume_with_other_readers(tmp_path: Path) -> None:
    state = train_loader(webdataset(tmp_path)).state_dict()
    with pytest.raises(UserError, match=r"another order: .*workers=1.*workers=2"):
        train_loader(make(tmp_path, "wds", workers=2)).load_state_dict(state)


def test_a_shard_is_opened_once_per_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    samples = WebDatasetSource.samples

    def observed(self: WebDatasetSource, shard: int, start: int) -> Iterator[Read]:
        opened.append(shard)
        return samples(self, shard, start)

    monkeypatch.setattr(WebDatasetSource, "samples", observed)
    index_of(webdataset(tmp_path).train_dataloader())
    assert sorted(opened) == list(range(len(LENGTHS)))


def test_the_count_of_samples_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        webdataset(tmp_path).train_dataloader()
    assert "2 of 38 samples are left out of an epoch" in caplog.text


def test_lengths_and_names_are_taken_from_the_files_beside_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, [3, 4])
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    info = {"filenames": ["train-01.tar", "train-00.tar"], "shard_lengths": [4, 3]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": info}}))
    monkeypatch.setattr(WebDatasetSource, "_count", lambda self, shard: pytest.fail("nothing need be counted"))
    data = make(tmp_path, "wds")
    assert data.class_names == ["cat", "dog"]
    assert len(data.split("train")) == 7


def test_a_damaged_image_is_left_out_and_its_shard_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "val.tar", {"a.jpg": jpeg(0)[:-90], "a.cls": b"0", "b.jpg": jpeg(1), "b.cls": b"1"})
    data = make(tmp_path, "wds", on_error="skip")
    assert index_of(data.val_dataloader()) == [[1]]
    assert data.loaders["val"].damaged == {f"{tmp_path}/val.tar sample 0"}


def test_a_shard_that_ends_early_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [3], "val")
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    info = {"filenames": ["val-00.tar"], "shard_lengths": [4]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"val": info}}))
    with pytest.raises(UserError, match=r"val-00.tar: ends before sample 3 of 4"):
        index_of(make(tmp_path, "wds").val_dataloader())


@pytest.mark.parametrize("wanted", [{"limit": 2}, {}])
def test_what_needs_random_access_is_refused(wanted: dict[str, int], tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 5])
    with pytest.raises(UserError, match=r"needs its own split .* knows no limit; .*source: tar"):
        make(tmp_path, "wds", **wanted).val_dataloader()


def test_refuses_readers_without_a_batch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="less than a batch_size of 20 for each of 2 workers"):
        webdataset(tmp_path, workers=2, batch_size=20).train_dataloader()
