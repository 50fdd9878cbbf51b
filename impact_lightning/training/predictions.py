"""The end of a predict: one line an image in `predictions.csv`."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from impact_lightning.files import atomic_write
from impact_lightning.ranks import rank_and_world


class PredictionWriter(BasePredictionWriter):
    """Write the most probable class of every image, in the order of the data set."""

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Collect the predictions of all ranks and write them once."""
        rows = [row for prediction in predictions for row in _rows(prediction)]
        rank, world = rank_and_world()
        parts: list[list[tuple[int, int, int, float]]] = [rows]
        if world > 1:
            parts = [[] for _ in range(world)]
            dist.all_gather_object(parts, rows)
        if rank != 0 or trainer.fast_dev_run:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["index", "sample", "label", "predicted", "probability"])
        for index, label, guess, probability in sorted(row for part in parts for row in part):
            names = data.class_names
            writer.writerow([index, data.sample_name("predict", index), names[label], names[guess], f"{probability:.6f}"])
        path = Path(trainer.default_root_dir) / "predictions.csv"
        with atomic_write(path) as file:
            file.write(text.getvalue().encode())
        print(f"predictions of {index + 1:,} images: {path}" if any(parts) else f"no image to predict: {path}")


def _rows(prediction: dict[str, torch.Tensor]) -> list[tuple[int, int, int, float]]:
    """Return (index, label, best class, its probability) of each image of a batch."""
    best = prediction["probability"].max(1)
    return list(
        zip(
            prediction["index"].tolist(),
            prediction["label"].tolist(),
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        )
    )
