"""The order of the tests."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests that leave threads behind after all others: a process that is forked then cannot differentiate."""
    items.sort(key=lambda item: item.get_closest_marker("threads") is not None)
