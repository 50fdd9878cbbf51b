"""The end of a predict: one line an image in `predictions.csv`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from impact_lightning.files import write_csv
from impact_lightning.ranks import rank_and_world
from impact_lightning.training.rehearsal import is_rehearsal

Row = tuple[int, int, int, float]  # index, label, most probable class, its probability


class PredictionWriter(Callback):
    """Write the most probable class of every image, in the order of the data set."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the rows of one batch, if the module predicts classes."""
        if isinstance(outputs, Mapping) and "probability" in outputs:
            self.rows += rows_of(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the rows of all ranks and write them once."""
        rank, world = rank_and_world()
        parts = [self.rows]
        if world > 1:
            parts = [[] for _ in range(world)]
            dist.all_gather_object(parts, self.rows)
        if rank != 0 or is_rehearsal(trainer):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows: list[list[Any]] = [["index", "sample", "label", "predicted", "probability"]]
        for index, label, guess, probability in sorted(row for part in parts for row in part):
            label_name, guess_name = data.class_names[label], data.class_names[guess]
            rows.append([index, data.sample_name("predict", index), label_name, guess_name, f"{probability:.6f}"])
        path = Path(trainer.default_root_dir) / "predictions.csv"
        write_csv(path, rows)
        print(f"predictions of {sum(map(len, parts)):,} images: {path}")


def rows_of(prediction: Mapping[str, Tensor]) -> list[Row]:
    """Return one row for each image of a batch."""
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
