"""The progress bar knows the images of a batch and the time that is left of the whole fit."""

from types import SimpleNamespace
from typing import Any

import pytest

from impact_lightning.training.progress import Progress


def bar(**trainer: Any) -> Progress:
    progress = Progress()
    data = SimpleNamespace(batch_size=64, eval_batch_size=256)
    progress._trainer = SimpleNamespace(  # type: ignore[assignment]
        **{"datamodule": data, "world_size": 2, "max_epochs": 4, "current_epoch": 1, "max_steps": -1, **trainer}
    )
    return progress


def task(description: str, completed: int, total: int | None = 10) -> Any:
    return SimpleNamespace(description=description, completed=completed, total=total)


def test_a_training_batch_is_global_and_an_evaluation_batch_is_per_rank() -> None:
    assert bar().samples_per_batch("Epoch 1/3") == 64
    assert bar().samples_per_batch("Validation") == 512


@pytest.mark.parametrize(
    ("trainer", "description", "left"),
    [
        ({}, "Epoch 1/3", 6 + 2 * 10),
        ({"current_epoch": 4}, "Epoch 3/3", 6),
        ({"max_epochs": -1, "max_steps": 100, "global_step": 14}, "Epoch 1", 86),
        ({}, "Validation", 6),
    ],
)
def test_what_is_left_is_that_of_the_fit_or_of_the_pass(trainer: dict[str, Any], description: str, left: int) -> None:
    assert bar(**trainer).batches_left(task(description, 4)) == left


def test_an_unknown_length_has_no_end() -> None:
    assert bar().batches_left(task("Epoch 1", 4, None)) is None
