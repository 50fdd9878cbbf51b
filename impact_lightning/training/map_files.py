"""Maps in files: every number of every image, all curves, the maps of some images, and pictures of both."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save

from impact_lightning.attribution.lit_attribution import FRACTIONS, LitAttribution
from impact_lightning.attribution.pictures import draw_curves, draw_gallery
from impact_lightning.attribution.study import Study
from impact_lightning.data.pictures import thumbnails
from impact_lightning.data.thumbnail_file import FILE as THUMBNAILS
from impact_lightning.data.thumbnail_file import write_thumbnails
from impact_lightning.files import atomic_write, write_csv
from impact_lightning.training.rehearsal import is_rehearsal
from impact_lightning.training.tracking import wandb_runs

SIDE = 128  # least pixels of a picture in the gallery


class MapFiles(Callback):
    """Write what is known of maps into `attribution/` of the run, one folder a model."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, draw and track what was measured."""
        if not isinstance(pl_module, LitAttribution) or not trainer.is_global_zero or is_rehearsal(trainer):
            return
        folder = Path(trainer.default_root_dir) / "attribution"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier test, perhaps of other models
        for study in pl_module.studies:
            pictures = _write(folder / study.name, study, pl_module)
            for run in wandb_runs(trainer):
                _track(run, study.name, pictures)
        print(f"maps, curves and scores of every image: {folder}")


def _write(folder: Path, study: Study, module: LitAttribution) -> list[Path]:
    """Write the files of a model, and return its pictures."""
    write_csv(folder / "scores.csv", _score_rows(study))
    curves = study.drawn()
    tensors = {"/".join(key): values.contiguous() for key, values in curves.items()}
    tensors |= {f"{FRACTIONS}/{protocol}/{curve}": x for (_, protocol, curve), x in study.fractions.items()}
    with atomic_write(folder / "curves.safetensors") as file:
        file.write(save(tensors))
    maps = {f"{one.row}/{method}": x.contiguous() for one in study.examples for method, x in one.maps.items()}
    with atomic_write(folder / "maps.safetensors") as file:
        file.write(save(maps or {"none": torch.zeros(0)}))
    write_thumbnails(folder / THUMBNAILS, module.data, [one.row for one in study.examples])
    pictures = [folder / "curves.png", folder / "gallery.png"]
    with atomic_write(pictures[0]) as file:
        draw_curves(file, study.name, curves, study.fractions)
    h, w = module.data.image_shape[1:]
    scale = -(-SIDE // min(h, w))
    seen = thumbnails(module.data, [one.row for one in study.examples], (h * scale, w * scale))
    with atomic_write(pictures[1]) as file:
        draw_gallery(file, study.name, study.examples, seen, module.data.class_names)
    return pictures


def _score_rows(study: Study) -> Iterator[list[Any]]:
    """Yield a row for each image and method, a column for each measure."""
    scores = study.scores()
    measures = list(dict.fromkeys(measure for _, measure in scores))
    yield ["row", "method", *measures]
    for method in study.methods:
        own = {measure: scores[method, measure] for measure in measures if (method, measure) in scores}
        rows = max((one.rows for one in own.values()), key=len)
        table = np.full((len(rows), len(measures)), np.nan)
        for place, measure in enumerate(measures):
            if measure in own:
                table[torch.searchsorted(rows, own[measure].rows).numpy(), place] = own[measure].values.numpy()
        for row, values in zip(rows.tolist(), table.tolist(), strict=True):
            yield [row, method, *("" if np.isnan(value) else f"{value:.6g}" for value in values)]


def _track(run: Any, model: str, pictures: list[Path]) -> None:
    """Log the figures."""
    import wandb

    run.log({f"test/{model}/{path.stem}": wandb.Image(str(path)) for path in pictures})
