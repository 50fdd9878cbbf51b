"""Predictions are one line an image, in the order of the data set, whatever the names contain."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from impact_lightning.training.predictions import PredictionWriter


def test_rows_are_sorted_and_names_survive(tmp_path: Path) -> None:
    names = ['a "quoted", name', "<script>", "two\nlines"]
    data = SimpleNamespace(class_names=names, sample_name=lambda split, row: f"{split}/{row},x.jpg")
    trainer: Any = SimpleNamespace(datamodule=data, default_root_dir=tmp_path, fast_dev_run=False)
    module: Any = None
    writer = PredictionWriter()
    for rows in ([2, 0], [1]):
        probability = torch.eye(3)[rows] * 0.5 + 0.1
        outputs = {"index": torch.tensor(rows), "label": torch.tensor(rows), "probability": probability}
        writer.on_predict_batch_end(trainer, module, outputs, None, 0)
    writer.on_predict_batch_end(trainer, module, {}, None, 0)  # of a rank without an image
    writer.on_predict_end(trainer, module)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["index"] for line in lines] == ["0", "1", "2"]
    assert [line["predicted"] for line in lines] == names
    assert [line["label"] for line in lines] == names
    assert lines[1]["sample"] == "predict/1,x.jpg"
    assert float(lines[1]["probability"]) == 0.6
