"""Loaders resume exactly, and give the same batches on any number of ranks and workers."""

from collections.abc import Set
from itertools import islice

import numpy as np
import pytest
import torch

from impact_lightning.data.loader import EvalLoader, Fetched, TrainLoader
from impact_lightning.data.order import EvalOrder, TrainOrder
from impact_lightning.types import ImageBatch, Key, UserError
from tests.distributed import run_distributed


class Numbers:
    """Pictures that are their own number, 1000 more each epoch; some are damaged, one ends the run."""

    def __init__(self, rows: int, damaged: Set[int] = frozenset(), fatal: int = -1) -> None:
        self.rows, self.damaged, self.fatal = rows, damaged, fatal
        self.fingerprint = f"numbers {rows}"

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.rows

    def __getitems__(self, keys: list[Key]) -> Fetched:
        """Return one batch."""
        if self.fatal in {key.row for key in keys}:
            raise UserError("photo 7 cannot be read")
        index = torch.tensor([key.row for key in keys if key.row not in self.damaged], dtype=torch.int64)
        images = (index + 1000 * (keys[0].epoch if keys else 0)).view(-1, 1, 1, 1)
        names = tuple(f"photo {key.row}" for key in keys if key.row in self.damaged)
        return Fetched(ImageBatch(images, index, index), names)


def make(rows: int = 22, workers: int = 0) -> TrainLoader:
    return TrainLoader(Numbers(rows), TrainOrder(rows, batch=4), workers=workers)


def numbers(batch: ImageBatch) -> list[int]:
    return batch.images.flatten().tolist()


def epochs(loader: TrainLoader, n: int) -> list[list[int]]:
    return [numbers(batch) for _ in range(n) for batch in loader]


def by_hand(n: int) -> list[list[int]]:
    orders = (np.random.default_rng([0, epoch]).permutation(22) + 1000 * epoch for epoch in range(n))
    return [rows[4 * step : 4 * step + 4].tolist() for rows in orders for step in range(5)]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_seeded_permutations_cut_into_batches(workers: int) -> None:
    assert epochs(make(workers=workers), 3) == by_hand(3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("steps", [0, 3, 5, 7])
def test_resume_equals_an_uninterrupted_run(steps: int, workers: int) -> None:
    first = make()
    whole, part = divmod(steps, len(first))
    seen = epochs(first, whole) + [numbers(batch) for batch in islice(first, part)]
    resumed = make(workers=workers)
    resumed.load_state_dict(first.state_dict())
    assert seen + epochs(resumed, 3 - whole) == by_hand(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_left_early_goes_on_where_it_was_left(workers: int) -> None:
    loader = make(workers=workers)
    seen = [numbers(batch) for batch in islice(loader, 2)]
    assert seen + epochs(loader, 1) == by_hand(1)


def on_rank(rank: int, workers: int) -> list[list[int]]:
    return epochs(make(workers=workers), 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_share_the_batches_of_one(workers: int) -> None:
    first, second = run_distributed(on_rank, workers)
    together = [[n for pair in zip(a, b, strict=True) for n in pair] for a, b in zip(first, second, strict=True)]
    assert together == by_hand(2)


def evaluated(rank: int, rows: int, workers: int) -> list[list[int]]:
    loader = EvalLoader(Numbers(rows), EvalOrder(rows, batch=4), workers=workers)
    batches = [numbers(batch) for batch in loader]
    assert len(batches) == len(loader)
    return batches


@pytest.mark.parametrize("rows", [3, 8, 11, 13])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_sample_once_on_uneven_ranks(rows: int, workers: int) -> None:
    ranks = run_distributed(evaluated, rows, workers)
    assert sorted(batch for part in ranks for batch in part if batch) == evaluated(0, rows, 0)
    assert all(part for part in ranks)  # a rank without an image has an empty batch: Lightning refuses none at all
    assert sorted(n for part in ranks for batch in part for n in batch) == list(range(rows))


def test_the_state_is_the_same_on_every_rank() -> None:
    def state(rank: int) -> str:
        loader = make()
        next(iter(loader))
        return repr(loader.state_dict())

    first, second = run_distributed(state)
    assert first == second


def test_the_global_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    epochs(make(), 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_are_left_out_and_named_once(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    loader = EvalLoader(Numbers(9, damaged={2, 8}), EvalOrder(9, batch=4), workers=workers)
    for _ in range(2):
        assert [numbers(batch) for batch in loader] == [[0, 1, 3], [4, 5, 6, 7], []]
    assert loader.damaged == {"photo 2", "photo 8"}
    assert [record.message for record in caplog.records] == [
        "left out, cannot be read: photo 2",
        "left out, cannot be read: photo 8",
    ]


def test_a_training_step_without_any_readable_image_is_refused() -> None:
    loader = TrainLoader(Numbers(4, damaged={0, 1, 2, 3}), TrainOrder(4, batch=4))
    with pytest.raises(UserError, match="step 0 of epoch 0: none of its images can be read"):
        next(iter(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_of_the_user_keeps_its_words_across_processes(workers: int) -> None:
    loader = EvalLoader(Numbers(9, fatal=5), EvalOrder(9, batch=4), workers=workers)
    with pytest.raises(UserError, match=r"^photo 7 cannot be read$"):
        list(loader)


def test_refuses_the_checkpoint_of_other_data() -> None:
    with pytest.raises(UserError, match=r"another (order|data): .*23"):
        make(22).load_state_dict(make(23).state_dict())


def test_refuses_a_batch_that_ranks_cannot_share() -> None:
    def refused(rank: int) -> str:
        with pytest.raises(UserError) as error:
            next(iter(make()))
        return str(error.value)

    messages = run_distributed(refused, world_size=3)
    assert set(messages) == {"the global batch_size 4 does not divide over 3 ranks"}
