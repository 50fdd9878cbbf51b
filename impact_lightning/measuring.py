"""Measuring: a module that trains nothing, and measures some models by `test`."""

from typing import Any

from lightning.pytorch import LightningModule

from impact_lightning.types import ImageBatch, UserError


class Measuring(LightningModule):
    """What modules have in common that only `test` runs."""

    def setup(self, stage: str) -> None:
        """Refuse what is no test."""
        name = type(self).__name__
        if stage != "test":
            raise UserError(f"{name} trains nothing: run `test`")
        if self.trainer.limit_test_batches == 0:
            raise UserError("trainer.limit_test_batches is 0: there is nothing to measure")

    def training_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Never runs; without it, Lightning would speak first and say less."""

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Never runs; without it, Lightning would speak first and say less."""

    def configure_optimizers(self) -> None:
        """Never runs; without it, Lightning would speak first and say less."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint: several models have several."""
        raise UserError(
            f"{type(self).__name__} takes no --ckpt_path: name the weights of each model, as model.models.NAME.weights"
        )
