"""Live activations equal those of a plain forward, and are the same after a resume and on any number of ranks."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from impact_lightning.activations import ActivationBatch, CachedActivations, LiveActivations, Tokens
from impact_lightning.backbones import Backbone, capture
from impact_lightning.types import Key, UserError
from tests.activations.tiny import LENGTH, N_IMAGES, SITES, make_backbone, make_data, make_shards
from tests.distributed import run_distributed

Batch = tuple[dict[str, list[list[float]]], list[int], list[int], list[int]]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return make_backbone(tmp_path_factory.mktemp("weights"))


def make(backbone: Backbone, **changes: Any) -> LiveActivations:
    settings: dict[str, Any] = {"batch_size": 12, "image_batch_size": 2, "buffer_images": 8}
    return LiveActivations(backbone, make_data(), SITES, **(settings | changes))


def plain(batch: ActivationBatch) -> Batch:
    rows = {site: values.tolist() for site, values in batch.activations.items()}
    return rows, batch.image.tolist(), batch.token.tolist(), batch.label.tolist()


def epochs(data: LiveActivations, n: int) -> list[Batch]:
    loader = data.train_dataloader()
    return [plain(batch) for _ in range(n) for batch in loader]


def by_hand(backbone: Backbone, epoch: int) -> list[Batch]:
    """Return the batches of an epoch: 2 buffers of 8 of 22 images, each of 3 batches of 12 of 40 rows."""
    data, model = make_data(), backbone.build().eval()
    images = np.random.default_rng([0, epoch]).permutation(N_IMAGES)
    batches: list[Batch] = []
    for buffer in range(2):
        rows: dict[str, list[Tensor]] = {site: [] for site in SITES}
        index: list[list[int]] = []
        for first in range(8 * buffer, 8 * buffer + 8, 2):
            keys = [Key(0, int(row)) for row in images[first : first + 2]]
            batch = data.on_after_batch_transfer(data.split("train").__getitems__(keys).batch, 0)
            with torch.no_grad(), capture(model, SITES) as seen:
                model(batch.images)
            for site in SITES:
                rows[site].append(seen[site].flatten(0, 1))
            labels = batch.labels.tolist()
            index += [[key.row, t, label] for key, label in zip(keys, labels, strict=True) for t in range(LENGTH)]
        order = np.random.default_rng([0, epoch, buffer]).permutation(40)
        for places in (order[:12], order[12:24], order[24:36]):
            chosen = {site: torch.cat(parts)[torch.from_numpy(places)].tolist() for site, parts in rows.items()}
            image, token, label = zip(*(index[place] for place in places), strict=True)
            batches.append((chosen, list(image), list(token), list(label)))
    return batches


def test_equals_forwards_by_hand(backbone: Backbone) -> None:
    assert epochs(make(backbone), 2) == by_hand(backbone, 0) + by_hand(backbone, 1)


@pytest.mark.parametrize("steps", [0, 1, 4, 6, 8])
def test_resume_equals_an_uninterrupted_run(backbone: Backbone, steps: int) -> None:
    data = make(backbone)
    loader = data.train_dataloader()
    whole, part = divmod(steps, len(loader))
    seen = [plain(batch) for _ in range(whole) for batch in loader] + [plain(batch) for batch in islice(loader, part)]
    resumed = make(backbone)
    resumed.load_state_dict(data.state_dict())
    assert seen + epochs(resumed, 2 - whole) == epochs(make(backbone), 2)


def on_rank(rank: int, backbone: Backbone) -> tuple[list[Batch], float]:
    data = make(backbone)
    return epochs(data, 2), data.statistics(SITES[0]).norm


def test_two_ranks_share_the_batches_of_one(backbone: Backbone) -> None:
    # All in forked processes with one thread each: another number of threads may move the last bit.
    ((alone, expected),) = run_distributed(on_rank, backbone, world_size=1)
    (first, norm), (second, other) = run_distributed(on_rank, backbone)
    for a, b, whole in zip(first, second, alone, strict=True):
        for part, rank in ((a, 0), (b, 1)):
            assert part[0] == {site: rows[rank::2] for site, rows in whole[0].items()}
            assert part[1:] == tuple(column[rank::2] for column in whole[1:])
    assert norm == other == expected


def test_holds_the_rows_that_are_cached(backbone: Backbone, tmp_path: Path) -> None:
    tokens = Tokens("random", 2, seed=5)
    root = make_shards(tmp_path, backbone, dtype="float32", tokens=tokens)
    cached = CachedActivations(root, root, eval_batch_size=1000)
    (stored,) = cached.val_dataloader()
    known = {
        (image, token): row
        for image, token, row in zip(
            stored.image.tolist(), stored.token.tolist(), stored.activations[SITES[1]], strict=True
        )
    }
    live = make(backbone, tokens=tokens, batch_size=4)
    for batch in live.train_dataloader():
        rows = torch.stack([known[key] for key in zip(batch.image.tolist(), batch.token.tolist(), strict=True)])
        assert torch.allclose(batch.activations[SITES[1]], rows, atol=1e-5)  # other neighbours, other rounding
    assert live.protocol() == cached.protocol()


def evaluated(rank: int, backbone: Backbone) -> list[list[int]]:
    return [batch.image.tolist() for batch in make(backbone).val_dataloader()]


def test_evaluation_sees_every_image_once_on_uneven_ranks(backbone: Backbone) -> None:
    first, second = run_distributed(evaluated, backbone)
    images = sorted(image for batch in first + second for image in batch)
    assert images == sorted(list(range(9)) * LENGTH)


def test_evaluation_batches_have_the_rows_that_the_progress_bar_counts(backbone: Backbone) -> None:
    data = make(backbone)
    first = next(iter(data.val_dataloader()))
    assert len(first.image) == data.eval_batch_size


def test_autocast_is_an_option(backbone: Backbone) -> None:
    exact, rounded = (next(iter(make(backbone, precision=p).train_dataloader())) for p in ("32-true", "bf16-mixed"))
    difference = (exact.activations[SITES[0]] - rounded.activations[SITES[0]]).abs().max()
    assert 0 < difference < 0.05
    assert rounded.activations[SITES[0]].dtype == torch.float32


def test_batches_can_be_trained_on(backbone: Backbone) -> None:
    batch = next(iter(make(backbone).train_dataloader()))
    weight = torch.ones(24, requires_grad=True)
    (batch.activations[SITES[1]] * weight).sum().backward()
    assert weight.grad is not None


def refused(rank: int, backbone: Backbone, changes: dict[str, int]) -> str:
    with pytest.raises(UserError) as error:
        next(iter(make(backbone, **changes).train_dataloader()))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 13}, "the global data.batch_size 13 does not divide over 2 ranks"),
        ({"buffer_images": 6}, "data.buffer_images 6 is 3 batches of data.image_batch_size 2, which 2 ranks cannot"),
    ],
)
def test_refuses_what_ranks_cannot_share(backbone: Backbone, changes: dict[str, int], message: str) -> None:
    assert all(message in text for text in run_distributed(refused, backbone, changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buffer_images": 5}, r"data\.buffer_images 5 must be a multiple of data\.image_batch_size 2"),
        ({"buffer_images": 24}, r"data\.buffer_images 24 is more than the 22 training images"),
        ({"batch_size": 41}, r"data\.batch_size 41 must lie between 1 and the 40 rows"),
    ],
)
def test_refuses_buffers_that_cannot_be_filled(backbone: Backbone, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(backbone, **changes).train_dataloader()


def test_refuses_the_checkpoint_of_another_model(backbone: Backbone, tmp_path: Path) -> None:
    data, other = make(backbone), make(make_backbone(tmp_path, seed=1))
    data.train_dataloader()
    other.load_state_dict(data.state_dict())
    with pytest.raises(UserError, match="the checkpoint was written with another data"):
        other.train_dataloader()
