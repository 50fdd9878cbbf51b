"""How long a training is: schedules need to know where it ends."""

from lightning.pytorch import Trainer

from impact_lightning.types import UserError


def total_steps(trainer: Trainer) -> int:
    """Return the steps of the whole training; refuse one without an end."""
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise UserError("the schedules need an end of the training: set trainer.max_steps or trainer.max_epochs")
    return int(steps)
