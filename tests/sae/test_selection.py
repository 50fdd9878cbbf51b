"""BatchTopK keeps exactly the M largest positive pre-activations of the batch of all ranks."""

import pytest
import torch
from torch import Tensor

from impact_lightning.sae.codes import Codes
from impact_lightning.sae.screen import ScreenName
from impact_lightning.sae.selection import BatchTopKSelection
from tests.distributed import run_distributed
from tests.sae.oracle import CASES, largest, problem

SCREENS: list[ScreenName] = ["fp32", "bf16"]


def mask_of(codes: Codes, like: Tensor) -> Tensor:
    mask = torch.zeros_like(like, dtype=torch.bool)
    mask[codes.rows, codes.latents] = True
    assert int(mask.sum()) == len(codes.rows)  # nothing twice
    return mask


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("m", [0, 1, 37, 120, 10**6])
def test_equals_a_stable_sort_of_the_dense_batch(screen: ScreenName, case: str, m: int) -> None:
    task = problem(case)
    z = task.pre_activations().detach()
    kept = BatchTopKSelection(screen)(task.x - task.b_dec, task.w_enc, task.b_enc, m)
    want = largest(z, m)
    assert torch.equal(mask_of(kept.codes, z), want)
    torch.testing.assert_close(kept.codes.dense(*z.shape), (z * want).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("floor", [1e-3, 0.7, 1e9])
def test_does_not_depend_on_where_the_search_begins(screen: ScreenName, floor: float) -> None:
    task = problem("ties", seed=3)
    z = task.pre_activations().detach()
    selection = BatchTopKSelection(screen)
    selection.floor.fill_(floor)
    kept = selection(task.x - task.b_dec, task.w_enc, task.b_enc, 100)
    assert torch.equal(mask_of(kept.codes, z), largest(z, 100))


@pytest.mark.parametrize("screen", SCREENS)
def test_keeps_exactly_m_of_hundreds_of_ties(screen: ScreenName) -> None:
    x, w, b = torch.ones(30, 4), torch.full((50, 4), 0.25), torch.zeros(50)  # all 1,500 entries are 1
    kept = BatchTopKSelection(screen)(x, w, b, 77).codes
    assert torch.equal(mask_of(kept, torch.zeros(30, 50)).flatten().nonzero().squeeze(1), torch.arange(77))


def test_the_cut_is_the_last_value_that_is_kept() -> None:
    task = problem("random")
    kept = BatchTopKSelection()(task.x - task.b_dec, task.w_enc, task.b_enc, 50)
    assert kept.cut == float(kept.codes.values.min())


def test_both_screens_select_the_same_over_a_drifting_run() -> None:
    selections = [BatchTopKSelection(screen) for screen in SCREENS]
    for step in range(12):
        task = problem("ties", n_rows=64, width=16, n_latents=200, seed=step)
        x, w, b = task.x.float() * (24 - step), task.w_enc.float(), task.b_enc.float()  # whole numbers: exact
        one, two = (selection(x, w, b, 256) for selection in selections)
        assert all(torch.equal(a, c) for a, c in zip(one.codes, two.codes, strict=True))
        assert one.cut == two.cut


def test_the_floor_follows_the_cut_closely_enough_to_search_once() -> None:
    generator = torch.Generator().manual_seed(0)
    w, b = torch.randn(800, 32, generator=generator) / 32**0.5, torch.zeros(800)
    selection = BatchTopKSelection()
    searches = []
    above = selection.screen.above
    selection.screen.above = lambda *args: searches.append(args[3]) or above(*args)  # type: ignore[method-assign,func-returns-value]
    for _ in range(20):
        selection(torch.randn(256, 32, generator=generator), w, b, 256 * 8)
    assert len(searches) <= 22
    assert min(searches) > 0


def kept_by_rank(rank: int, world: int, screen: ScreenName, case: str, m: int) -> list[list[tuple[int, int]]]:
    selection = BatchTopKSelection(screen)
    found = []
    for seed in range(3):
        task = problem(case, n_rows=22, seed=seed)  # rows do not divide evenly among four ranks
        codes = selection((task.x - task.b_dec)[rank::world], task.w_enc, task.b_enc, m).codes
        rows = (codes.rows * world + rank).tolist()
        found.append(list(zip(rows, codes.latents.tolist(), strict=True)))
    return found


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("case", ["ties", "scarce"])
def test_ranks_keep_what_one_process_keeps(world: int, screen: ScreenName, case: str) -> None:
    parts = run_distributed(kept_by_rank, world, screen, case, 101, world_size=world)
    for step, alone in enumerate(kept_by_rank(0, 1, screen, case, 101)):
        together = [entry for part in parts for entry in part[step]]
        assert sorted(together) == sorted(alone)


def count_of_rank(rank: int, x: Tensor, w: Tensor) -> int:
    return len(BatchTopKSelection(scope="local")(x[rank::2], w, torch.zeros(len(w)), 9).codes.rows)


def test_local_scope_gives_every_rank_its_own_share() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(12, 5, generator=generator), torch.randn(40, 5, generator=generator)
    x[1::2] /= 100  # one rank's values are all smaller than the other's
    assert run_distributed(count_of_rank, x, w) == [9, 9]
