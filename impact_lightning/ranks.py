"""Ranks of a process group: the same code runs with and without one."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T", bound=Hashable)
Part = TypeVar("Part")


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; `(0, 1)` without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def all_sum(x: Tensor) -> Tensor:
    """Return the sum of `x` over all ranks; `x` itself in a single process."""
    if rank_and_world()[1] == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


def all_union(own: set[T]) -> set[T]:
    """Return the union of a set over all ranks."""
    _, world = rank_and_world()
    if world == 1:
        return own
    parts: list[set[T]] = [set() for _ in range(world)]
    dist.all_gather_object(parts, own)
    return set().union(*parts)


def all_in_turns(own: Sequence[Part]) -> list[Part]:
    """Return the parts of all ranks in order, where rank r made those at r, r + world, r + 2 world, ..."""
    _, world = rank_and_world()
    if world == 1:
        return list(own)
    parts: list[Sequence[Part]] = [[] for _ in range(world)]
    dist.all_gather_object(parts, own)
    return [parts[i % world][i // world] for i in range(sum(map(len, parts)))]
