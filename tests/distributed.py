"""Two processes in a test."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def run_distributed(fn: Callable[..., Any], *args: Any, world_size: int = 2, timeout: float = 60.0) -> list[Any]:
    """Call `fn(rank, *args)` in forked gloo processes; return plain values by rank."""
    queue = get_context("fork").Queue()
    spec = (free_port(), world_size, fn, args, queue)
    processes = start_processes(_entry, spec, nprocs=world_size, start_method="fork", join=False)
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < world_size:
        processes.join(timeout=0)  # raises a rank's exception here
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.terminate()
            raise TimeoutError(f"only ranks {sorted(results)} of {world_size} answered")
        with suppress(Empty):
            rank, value = queue.get(timeout=0.1)
            results[rank] = value
    processes.join()
    return [results[rank] for rank in range(world_size)]


def free_port() -> int:
    """Return a port that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _entry(rank: int, port: int, world: int, fn: Callable[..., Any], args: tuple[Any, ...], queue: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)  # a forked process cannot use the parent's thread pool
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=30))
    try:
        queue.put((rank, fn(rank, *args)))
    finally:
        dist.destroy_process_group()
