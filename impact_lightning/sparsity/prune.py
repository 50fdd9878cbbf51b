"""The verb `prune`: dense weights become sparse weights that plain timm loads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from impact_lightning.backbones import Backbone
from impact_lightning.backbones.image_size import check_image_size
from impact_lightning.data.module import ImageDataModule
from impact_lightning.ranks import rank_and_world
from impact_lightning.sparsity.calibration import CalibrationImages
from impact_lightning.sparsity.masks import parse_scope
from impact_lightning.sparsity.pruned_file import masks_path
from impact_lightning.sparsity.pruning import Achieved, Pruning
from impact_lightning.sparsity.ratios import Ratios
from impact_lightning.sparsity.recipe import Method, Recipe
from impact_lightning.sparsity.targets import BLOCKS, NOTHING, Target, find_targets, kind
from impact_lightning.types import UserError


def prune(
    *,
    backbone: Backbone,
    out: Path,
    data: ImageDataModule | None = None,
    method: Method = "wanda",
    scope: str | None = None,
    sparsity: float | list[float] | None = None,
    ratios: Ratios = "uniform",
    include: list[str] = BLOCKS,
    exclude: list[str] = NOTHING,
    sequential: bool = False,
    split_qkv: bool = False,
    fold_layer_scale: bool = True,
    images: int = 4096,
    batch_size: int = 64,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Set weights of a model to zero; write it as safetensors with its protocol in the metadata, and masks beside it.

    Under torchrun each process runs its share of the batches.

    Args:
        backbone: The model and its dense weights.
        out: File of the sparse weights, .safetensors. Of several sparsities each has its own: `{sparsity}` in the name
            stands for it, or else it is put at the end of the name.
        data: Images for calibration, out of the train split; wanda, sparsegpt and ratios by outliers need them.
        method: What decides which weights go: chance, `|w|`, `|w| * ||x||`, or SparseGPT, which also mends the others.
        scope: Weights that are compared with each other: `row`, `tensor`, `global`, or N:M such as `2:4`, of which N
            are kept. By default `row`; for sparsegpt, which compares 128 columns at a time, `tensor`.
        sparsity: Share of the weights that become zero, or several: one pass of calibration serves them all.
        ratios: The same share in every layer, or less where a block has outliers (OWL), or a share by name, glob, or
            regular expression after `re:`; layers that are not named then share the rest.
        include: What is pruned: names of layers, of the sites that they read, globs, or `re:` and a regular expression.
        exclude: What stays dense all the same.
        sequential: Compute the activations of each block after the blocks before it are pruned. L blocks cost L
            readings of the images and (L + 1) / 2 forwards of each, again for every sparsity.
        split_qkv: Compare q, k and v each with itself; for scope `tensor`.
        fold_layer_scale: In scope `global`, multiply scores by the LayerScale that their branch passes through: by its
            row for proj and fc2, by its mean for qkv and fc1.
        images: Images to draw for calibration, without replacement.
        batch_size: Images of one forward.
        seed: Seed of the draw, and of method `random`.
        device: `auto` takes a GPU if there is one.
    """
    chosen = parse_scope(scope or ("tensor" if method == "sparsegpt" else "row"))
    recipe = Recipe(method, chosen, ratios, sequential, split_qkv, fold_layer_scale, seed)
    sparsities = recipe.sparsities(sparsity)
    files = out_files(out, sparsities, backbone)
    drawn = _draw(recipe, data, images, batch_size)
    model = backbone.build().eval().requires_grad_(False)
    recipe.check(targets := find_targets(model, include, exclude), sparsities)
    if drawn is not None:
        check_image_size(model, backbone.name, drawn.data.image_shape)
    _make_folder(out)
    with _process_group(device) as place:
        pruning = Pruning(backbone, model.to(place), targets, recipe, drawn)
        achieved = {one: pruning.write(file, one) for file, one in files.items()}
        if rank_and_world()[0] == 0:
            _report(targets, files, achieved)


def out_files(out: Path, sparsities: list[float], backbone: Backbone) -> dict[Path, float]:
    """Return the file of each sparsity."""
    if out.suffix != ".safetensors":
        raise UserError(f"out {out}: sparse weights are written as .safetensors")
    name = out.name
    if "{sparsity}" not in name and len(sparsities) > 1:
        name = f"{out.stem}-{{sparsity}}{out.suffix}"
    files = {out.with_name(name.replace("{sparsity}", repr(one))): one for one in sparsities}
    for file in files:
        written = {file.resolve(), masks_path(file).resolve()}
        if backbone.weights is not None and backbone.weights.resolve() in written:
            raise UserError(f"out {file} is the file of the dense weights; choose another name")
        if file.is_dir():
            raise UserError(f"out {file} is a folder; give the name of a file")
    return files


def _make_folder(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder of out {out} cannot be made: {error.strerror or error}") from error


def _draw(recipe: Recipe, data: ImageDataModule | None, images: int, batch_size: int) -> CalibrationImages | None:
    if not recipe.needs_images:
        return None
    if data is None:
        what = f"method {recipe.method}" if recipe.is_calibrated else f"ratios {recipe.ratios}"
        raise UserError(f"{what} looks at activations: give the images in data")
    return CalibrationImages(data, images, batch_size, recipe.seed)


@contextmanager
def _process_group(device: str) -> Iterator[torch.device]:
    """Join the processes that torchrun has started, if it has; return this one's device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: there is none; set device to cpu or auto")
    is_cuda = device != "cpu" and torch.cuda.is_available()
    place = torch.device("cpu")
    if is_cuda:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        torch.cuda.set_device(place)
    joins = dist.is_torchelastic_launched() and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if is_cuda else "gloo")
    try:
        yield place
    finally:
        if joins:
            dist.destroy_process_group()


def _report(targets: list[Target], files: dict[Path, float], achieved: dict[float, Achieved]) -> None:
    """Print the share of zeros of every layer, one column for each sparsity, and where things are."""
    table = Table(box=None, header_style="")
    for name, side in (("share of zeros", "left"), ("weights", "right"), *((f"{one}", "right") for one in achieved)):
        table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]  # one of its literals
    rows: dict[str, list[Target]] = {}
    for target in targets:
        rows.setdefault(kind(target.name), []).append(target)
    for name, layers in rows.items():
        shown = {tuple(f"{found.zeros[layer.name]:.4f}" for found in achieved.values()): layer for layer in layers}
        several = f" ({len(layers)})" if len(layers) > 1 else ""
        for shares, layer in shown.items():  # one line where all blocks are alike
            title = f"{name}{several}" if len(shown) == 1 else layer.name
            table.add_row(title.replace(".weight", ""), "{} x {}".format(*layer.weight.shape), *shares)
    total = sum(target.weight.numel() for target in targets)
    table.add_row("all of these", f"{total:,}", *(f"{achieved[one].zeros['total']:.4f}" for one in achieved))
    Console(highlight=False).print(table)
    print()
    for one, found in achieved.items():
        print(f"at {one}: {found.emptied}")
    for file in files:
        print(f"{file}  {masks_path(file).name}")
