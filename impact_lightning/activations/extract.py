"""Images become shards of activations on disk: restartable, and with the same bytes on any number of ranks."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice, tee
from pathlib import Path
from time import monotonic
from typing import Literal, NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from impact_lightning.activations.batch import ActivationBatch, site_statistics
from impact_lightning.activations.frozen import FrozenBackbone, readable_split
from impact_lightning.activations.image_reader import ImageReader
from impact_lightning.activations.manifest import INDEX, Configuration, Dtype, Manifest, Precision
from impact_lightning.activations.shards import Shards, check_shard, read_record, record_path, write_shard
from impact_lightning.activations.stored_array import Array
from impact_lightning.activations.tokens import Tokens
from impact_lightning.backbones import Backbone
from impact_lightning.data.module import ImageDataModule, Split
from impact_lightning.data.order import Rows
from impact_lightning.types import UserError

ALL = Tokens()


def extract(
    *,
    backbone: Backbone,
    data: ImageDataModule,
    sites: list[str],
    out: Path,
    split: Literal["train", "val", "test"] = "train",
    tokens: Tokens = ALL,
    dtype: Dtype = "float16",
    precision: Precision = "32-true",
    batch_size: int = 64,
    images_per_shard: int = 512,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Write the activations of a split into a folder; what is already there and intact is kept.

    Under torchrun or srun each process writes its share of the shards. Whoever finds all of them complete writes the
    manifest: the last process to end, or any later call.

    Args:
        backbone: The model and its weights.
        data: The images, prepared as for evaluation.
        sites: Names or globs of sites.
        out: Folder of the shards: one split of one model.
        split: The split to read.
        tokens: Which tokens of each image are kept.
        dtype: Numbers on disk; float16 ends at 65504, and more is refused.
        precision: `bf16-mixed` runs the forward under autocast.
        batch_size: Images of one forward.
        images_per_shard: Images of one shard; two shards are held in memory.
        device: `auto` takes a GPU if there is one.
    """
    for name, value in (("batch_size", batch_size), ("images_per_shard", images_per_shard)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    images = readable_split(data, split)
    frozen = FrozenBackbone(backbone, sites, tokens, precision)
    configuration = Configuration(frozen.origin(data, split), dtype, len(images), images_per_shard, batch_size)
    place = _place()
    own = range(place.rank, configuration.n_shards, place.world)
    missing = [number for number in own if not _is_intact(out, number, configuration)]
    began = monotonic()
    if missing:
        frozen.model.to(_device(device, place.local_rank))
        with Progress(disable=place.rank > 0, transient=True) as progress:
            _write_shards(out, progress.track(missing, description="extract"), frozen, data, split, configuration)
    is_complete = _complete(out, configuration)
    print(
        f"{out}: {len(missing)} shards written, {len(own) - len(missing)} kept"
        + (f" by rank {place.rank} of {place.world}" if place.world > 1 else "")
        + f" in {monotonic() - began:.1f} s; "
        + ("the set is complete" if is_complete else "the process that ends last writes the manifest")
    )


class _Place(NamedTuple):
    rank: int
    world: int
    local_rank: int


def _place() -> _Place:
    """Return which process of how many this is, as torchrun or srun tells it."""
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # SLURM_NTASKS is also set outside of srun
    ):
        if all(name in os.environ for name in names):
            return _Place(*(int(os.environ[name]) for name in names))
    return _Place(0, 1, 0)


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda: there is none; set device to cpu or auto")
    is_cuda = wanted != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", local_rank % torch.cuda.device_count()) if is_cuda else torch.device("cpu")


def _batches(number: int, configuration: Configuration) -> Iterator[Rows]:
    """Yield the rows of each forward of a shard: the same on any number of ranks."""
    start = number * configuration.images_per_shard
    stop = min(start + configuration.images_per_shard, configuration.n_images)
    for first in range(start, stop, configuration.batch_size):
        yield np.arange(first, min(first + configuration.batch_size, stop))


def _is_intact(out: Path, number: int, configuration: Configuration) -> bool:
    """Return whether a shard is there with all its bytes; one of another configuration is refused."""
    if not record_path(out, number).is_file():
        return False
    shard = read_record(out, number, configuration.digest())
    try:
        check_shard(out, number, shard, configuration)
    except UserError as damage:
        print(str(damage).replace("run `extract` again", "it is written again"))
        return False
    return True


def _write_shards(
    out: Path,
    numbers: Iterable[int],
    frozen: FrozenBackbone,
    data: ImageDataModule,
    split: Split,
    configuration: Configuration,
) -> None:
    """Run the backbone over the images of some shards; each is written while the next is computed."""
    numbers, ahead = tee(numbers)
    reader = ImageReader(data.split(split), workers=data.workers)
    batches = reader.read(rows for number in ahead for rows in _batches(number, configuration))
    pending: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer, frozen.reading(data) as read:
        for number in numbers:
            n_batches = len(list(_batches(number, configuration)))
            parts = [_columns(read(images), configuration.dtype) for images in islice(batches, n_batches)]
            if pending is not None:
                pending.result()
            pending = writer.submit(_write_shard, out, number, parts, configuration, partial(data.sample_name, split))
        if pending is not None:
            pending.result()


def _columns(batch: ActivationBatch, dtype: Dtype) -> dict[str, Tensor]:
    """Return what is stored of a batch, on its way to the CPU: into pinned memory, so that a GPU goes on meanwhile."""
    index = torch.stack([batch.image, batch.token, batch.label], 1).int()  # (N, 3)
    sites = {site: rows.to(getattr(torch, dtype)) for site, rows in batch.activations.items()}
    return {name: rows.to("cpu", non_blocking=True) for name, rows in ({INDEX: index} | sites).items()}


def _write_shard(
    out: Path,
    number: int,
    parts: list[dict[str, Tensor]],
    configuration: Configuration,
    name_of: Callable[[int], str],
) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # until the parts have arrived
    arrays = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    for site in configuration.origin.sites:
        _check_finite(site, arrays[site], arrays[INDEX], name_of)
    write_shard(out, number, arrays, configuration.digest())


def _check_finite(site: str, rows: Array, index: Array, name_of: Callable[[int], str]) -> None:
    if torch.from_numpy(rows).isfinite().all():
        return
    bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
    image, token, _ = (int(value) for value in index[bad])
    where = f"{site}, image {image}{f' ({name})' if (name := name_of(image)) else ''}, token {token}"
    if rows.dtype == np.float16 and not np.isnan(rows[bad]).any():
        raise UserError(f"{where}: an activation is beyond 65504, where float16 ends; set dtype to float32")
    raise UserError(f"{where}: an activation is nan or infinite; look at the weights and at this image")


def _complete(out: Path, configuration: Configuration) -> bool:
    """Write the manifest if every shard has its record; two processes that do so write the same bytes."""
    numbers = range(configuration.n_shards)
    if not all(record_path(out, number).is_file() for number in numbers):
        return False
    shards = [read_record(out, number, configuration.digest()) for number in numbers]
    draft = Shards(out, Manifest(configuration, shards, statistics={}))
    if not len(draft):
        raise UserError(f"{out}: none of the images can be read; mend the data")
    statistics = {site: site_statistics(draft.sample(site)) for site in configuration.origin.sites}
    Manifest(configuration, shards, statistics).write(out)
    return True
