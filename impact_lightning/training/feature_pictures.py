"""The features of dictionaries in files that a person opens: tables, pictures of top images, density histograms."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from impact_lightning.activations.module import ActivationDataModule
from impact_lightning.data.pictures import RGB
from impact_lightning.data.thumbnail_file import FILE as THUMBNAILS
from impact_lightning.data.thumbnail_file import foremost, write_thumbnails
from impact_lightning.files import atomic_write, write_csv
from impact_lightning.metrics.density import BINS_PER_DECADE, DECADES, log_histogram
from impact_lightning.sae.density_picture import draw_densities
from impact_lightning.sae.features import Description, Features, write_features
from impact_lightning.sae.gallery import SHOWN, Gallery, choose
from impact_lightning.sae.lit_sae import LitSAE
from impact_lightning.training.rehearsal import is_rehearsal
from impact_lightning.training.tracking import wandb_runs

EDGES = [place / BINS_PER_DECADE - DECADES for place in range(DECADES * BINS_PER_DECADE + 1)]  # of log10 densities
TOPS = 8  # images of each latent that have a thumbnail
TRACKED = (34, 16)  # latents of a W&B table, chosen as those of a sheet
COLUMNS = (
    *("latent", "density", "images", "label", "purity", "entropy", "label_monosemanticity", "monosemanticity"),
    *("lens", "neighbours", "top_images"),
)
Cell = int | float | str | None


class FeaturePictures(Callback):
    """Write what is known of every latent into `features/` of the run, one folder a dictionary."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the density histograms of a validation to their files and to W&B."""
        if not isinstance(pl_module, LitSAE) or not _writes(trainer):
            return
        if trainer.sanity_checking or trainer.state.fn != "fit":  # `validate` knows no step
            return
        step = trainer.global_step
        for name, histogram in pl_module.densities.items():
            add_densities(_folder(trainer, name) / "density.csv", step, histogram)
        for run in wandb_runs(trainer):
            found = {f"val/{name}/density": _histogram(counts) for name, counts in pl_module.densities.items()}
            run.log({**found, "trainer/global_step": step})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, draw and track the features of every dictionary."""
        if not isinstance(pl_module, LitSAE) or not _writes(trainer):
            return
        missing, known = set(), dict[int, RGB]()
        for name, (features, description) in pl_module.features.items():
            folder, gallery = _folder(trainer, name), _gallery(pl_module.data, features, description)
            write_features(folder, features, description)
            table = rows_of(features, description, pl_module.data)
            _write_table(folder / "features.csv", table)
            with atomic_write(folder / "density.svg") as file:
                draw_densities(file, features, name)
            if gallery is None:
                (folder / "top_features.png").unlink(missing_ok=True)  # of an earlier test, perhaps of other features
            else:
                with atomic_write(folder / "top_features.png") as file:
                    gallery.draw(file, choose(features))
                missing |= gallery.missing
            _write_thumbnails(folder / THUMBNAILS, features, pl_module.data, known)
            for run in wandb_runs(trainer):
                _track(run, name, features, table, gallery, folder)
        print(f"features of every dictionary: {Path(trainer.default_root_dir) / 'features'}")
        if pl_module.data.data is None:
            print("  no pictures of top images: cached activations have none; `test` with LiveActivations draws them")
        if missing:
            print(f"  {len(missing)} top images cannot be read and are left out of the pictures")


def add_densities(path: Path, step: int, histogram: Tensor) -> None:
    """Add a line to a table of density histograms; a run that went back to an earlier step continues from there."""
    kept: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.reader(file) if row and row[0].isdecimal() and int(row[0]) < step]
    header = ["step", *(f"{edge:.1f}" for edge in EDGES[:-1])]  # the lower edge of each bin
    write_csv(path, [header, *kept, [step, *histogram.tolist()]])


def rows_of(features: Features, description: Description, data: ActivationDataModule) -> list[list[Cell]]:
    """Return one row a latent of what is known of it, in the order of `COLUMNS`; None where nothing is."""
    names, lens = description.class_names, _lens_names(description, data)
    images = features.image[:, :SHOWN].tolist()
    called = {row: _called(data, row) for row in {row for part in images for row in part} if row >= 0}
    numbers = zip(
        *(features.density.tolist(), features.class_counts.sum(1).tolist(), features.label.tolist()),
        *(features.purity.tolist(), features.entropy.tolist(), features.same_label.tolist(), features.alike.tolist()),
        strict=True,
    )
    return [
        [
            *(latent, density, n, names[label] if label >= 0 else None),
            *(None if math.isnan(value) else value for value in judged),
            " | ".join(lens[place] for place in features.lens_class[latent].tolist()),
            " | ".join(
                f"{other} {cosine:.3f}"
                for other, cosine in zip(
                    features.neighbour[latent].tolist(), features.neighbour_cosine[latent].tolist(), strict=True
                )
            ),
            " | ".join(called[row] for row in images[latent] if row >= 0),
        ]
        for latent, (density, n, label, *judged) in enumerate(numbers)
    ]


def _writes(trainer: Trainer) -> bool:
    return trainer.is_global_zero and not is_rehearsal(trainer)


def _folder(trainer: Trainer, name: str) -> Path:
    return Path(trainer.default_root_dir) / "features" / name


def _gallery(data: ActivationDataModule, features: Features, description: Description) -> Gallery | None:
    """Return what draws top images, where there are any."""
    if data.data is None or data.frozen is None:
        return None
    return Gallery(features, description, data.data, data.frozen)


def _write_thumbnails(path: Path, features: Features, data: ActivationDataModule, known: dict[int, RGB]) -> None:
    """Write small pictures of the top images of all latents that fire; no file where the data has no images.

    Args:
        path: The file.
        features: What is known of the latents.
        data: The data.
        known: Pictures of other dictionaries, which share most of them; those that are read are added.
    """
    if data.data is None:
        path.unlink(missing_ok=True)  # of an earlier test, perhaps of other features
    else:
        write_thumbnails(path, data.data, foremost([features.image[features.density > 0, :TOPS]]), known=known)


def _lens_names(description: Description, data: ActivationDataModule) -> list[str]:
    """Return what the model's classes are called: numbers, where they are others than those of the data."""
    n = len(description.class_names) if data.frozen is None else int(data.frozen.model.num_classes)
    return description.class_names if n == len(description.class_names) else [str(place) for place in range(n)]


def _called(data: ActivationDataModule, row: int) -> str:
    """Return what a person calls a test image: its file, or its number."""
    return (data.data.sample_name("test", row) if data.data is not None else "") or str(row)


def _write_table(path: Path, table: list[list[Cell]]) -> None:
    shown = [[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in table]
    write_csv(path, [COLUMNS, *shown])


def _histogram(counts: Tensor) -> Any:
    import wandb

    return wandb.Histogram(np_histogram=(counts.cpu().numpy(), np.array(EDGES)))


def _track(
    run: Any, name: str, features: Features, table: list[list[Cell]], gallery: Gallery | None, folder: Path
) -> None:
    """Log the densities, and a table of some latents with a strip of the top images of each, beside the sheet."""
    import wandb

    latents = [latent for part in choose(features, *TRACKED) for latent in part]
    columns: list[str | int] = [*COLUMNS]
    rows: list[list[Any]] = [[*table[latent]] for latent in latents]
    found = {f"test/{name}/density": _histogram(log_histogram(features.density))}
    if gallery is not None:
        found[f"test/{name}/top_features"] = wandb.Image(str(folder / "top_features.png"))
        gallery.read(latents)
        columns.append("images_and_maps")
        for row, latent in zip(rows, latents, strict=True):
            row.append(wandb.Image(gallery.strip(latent)))
    run.log({**found, f"features/{name}": wandb.Table(columns=columns, data=rows)})
