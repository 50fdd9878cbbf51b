"""The units of models in files that a person opens: tables, figures, and a browser."""

import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from impact_lightning.data.labels import labels_of
from impact_lightning.data.thumbnail_file import FILE as THUMBNAILS
from impact_lightning.data.thumbnail_file import foremost, write_thumbnails
from impact_lightning.files import atomic_write, write_csv
from impact_lightning.neurons.browser import write_browser
from impact_lightning.neurons.comparison import comparison_markdown, finding_rows
from impact_lightning.neurons.comparison_picture import draw_comparison
from impact_lightning.neurons.lit_neurons import LitNeurons
from impact_lightning.neurons.unit_files import write_units
from impact_lightning.neurons.violins import draw_violins
from impact_lightning.training.rehearsal import is_rehearsal
from impact_lightning.training.tracking import wandb_runs

CLASSES, EXAMPLES = 100, 12  # the first classes, and images of each, that have a thumbnail
ROWS = 5000  # most pictures of examples and of units' top images together


class UnitPictures(Callback):
    """Write what is known of units into `neurons/` of the run, one folder a model and figures of all."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, draw and track what was measured."""
        if not isinstance(pl_module, LitNeurons) or not trainer.is_global_zero or is_rehearsal(trainer):
            return
        folder, names = Path(trainer.default_root_dir) / "neurons", pl_module.data.class_names
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier test, perhaps of other models
        for name, measures in pl_module.measures.items():
            write_units(folder / "models" / name, measures, names, pl_module.protocol())
        _write_comparison(folder, pl_module)
        pictures = _draw(folder, pl_module)
        with atomic_write(folder / "units.html") as file:
            write_browser(file, pl_module.measures, pl_module.data, names, pl_module.settings)
        write_thumbnails(folder / THUMBNAILS, pl_module.data, shown_rows(pl_module))
        for run in wandb_runs(trainer):
            _track(run, pictures)
        print(f"units of every model, figures, and a browser of units: {folder}")


def shown_rows(module: LitNeurons) -> list[int]:
    """Return the test images that have a thumbnail: the first of each class, then the strongest of units."""
    labels = labels_of(module.data, "test")
    classes = range(min(CLASSES, module.data.n_classes))
    examples = torch.cat([(labels == c).nonzero().flatten()[:EXAMPLES] for c in classes])
    return foremost([examples[:, None], *(known.top.images for known in module.measures.values())], ROWS)


def _write_comparison(folder: Path, module: LitNeurons) -> None:
    """Write the comparison of all models: every layer as numbers, and means over all layers to be read."""
    kinds = [f"{kind}s" for kind in module.kinds]
    with atomic_write(folder / "comparison.md") as file:
        file.write("\n".join(comparison_markdown(of, module.findings, module.differences) for of in kinds).encode())
    write_csv(folder / "comparison.csv", finding_rows(module.findings, module.differences))


def _draw(folder: Path, module: LitNeurons) -> list[Path]:
    """Draw the distributions over classes, and the comparison of models."""
    pictures = []
    for kind in module.kinds:
        for path in (folder / f"violins_{kind}s.png", folder / f"comparison_{kind}s.png"):
            with atomic_write(path) as file:
                if path.name.startswith("violins"):
                    draw_violins(file, module.measures, kind)
                else:
                    draw_comparison(file, module.measures, module.findings, module.differences, kind)
            pictures.append(path)
    return pictures


def _track(run: Any, pictures: list[Path]) -> None:
    """Log the figures."""
    import wandb

    run.log({f"test/{path.stem}": wandb.Image(str(path)) for path in pictures})
