"""The order of the tests and the threads that they use."""

import os

import pytest
import torch

# A rank is forked and has one thread, and last bits depend on the number of threads: a run that ranks are compared
# with has one as well, whatever the machine.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that leave threads behind after all others: a process that is forked then cannot differentiate."""
    items.sort(key=lambda item: item.get_closest_marker("threads") is not None)
